//! A container as a kubelet describes it.

use std::path::Path;

use super::{OF_CONTAINER, OF_POD};
use crate::images::IMAGE;
use nacre_protocol::cri::{
    ContainerConfig, Device, ImageSpec, KeyValue, LinuxContainerSecurityContext, Mount, NamespaceOption,
};

/// A container to start.
#[derive(Debug, Clone)]
pub struct Wish(pub(super) ContainerConfig);

impl Wish {
    /// A shell script in the test image, as its only command.
    pub fn sh(script: &str) -> Self {
        Self::of(IMAGE).command(&["sh", "-c", script])
    }

    /// Sleeps until it is ended.
    pub fn idle() -> Self {
        Self::sh("exec sleep 100000")
    }

    /// What an image runs by itself.
    pub fn of(image: &str) -> Self {
        let mut config = ContainerConfig::new();
        config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() }).into();
        let security = config.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        security.namespace_options = Some(namespaces()).into();
        Self(config)
    }

    /// With these words in place of the image's entry point.
    #[must_use]
    pub fn command(mut self, words: &[&str]) -> Self {
        self.0.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With these words in place of the image's command.
    #[must_use]
    pub fn args(mut self, words: &[&str]) -> Self {
        self.0.args = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// With a variable of the environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.0.envs.push(KeyValue { key, value, ..Default::default() });
        self
    }

    /// With a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.0.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// With the processes of the whole pod.
    #[must_use]
    pub fn share_processes(mut self) -> Self {
        let security = self.0.linux.mut_or_insert_default().security_context.mut_or_insert_default();
        security.namespace_options.mut_or_insert_default().pid = OF_POD;
        self
    }

    /// With a directory of the host.
    #[must_use]
    pub fn mount(mut self, host: &Path, container: &str) -> Self {
        let (host_path, container_path) = (host.display().to_string(), container.to_owned());
        self.0.mounts.push(Mount { host_path, container_path, ..Default::default() });
        self
    }

    /// With a directory or file of the host that it may not write to.
    #[must_use]
    pub fn mount_read_only(self, host: &Path, container: &str) -> Self {
        let mut wish = self.mount(host, container);
        if let Some(mount) = wish.0.mounts.last_mut() {
            mount.readonly = true;
        }
        wish
    }

    /// With another security context.
    #[must_use]
    pub fn security(mut self, change: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Self {
        change(self.0.linux.mut_or_insert_default().security_context.mut_or_insert_default());
        self
    }

    /// With a block device of the host; `permissions` are of `rwm`.
    #[must_use]
    pub fn device(mut self, host: &str, container: &str, permissions: &str) -> Self {
        let (host_path, container_path) = (host.to_owned(), container.to_owned());
        let permissions = permissions.to_owned();
        self.0.devices.push(Device { host_path, container_path, permissions, ..Default::default() });
        self
    }

    /// With a limit of memory, in bytes.
    #[must_use]
    pub fn memory(mut self, bytes: i64) -> Self {
        let linux = self.0.linux.mut_or_insert_default();
        linux.resources.mut_or_insert_default().memory_limit_in_bytes = bytes;
        self
    }

    /// The number of the attempt.
    #[must_use]
    pub fn attempt(mut self, attempt: u32) -> Self {
        self.0.metadata.mut_or_insert_default().attempt = attempt;
        self
    }

    /// With anything else changed.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut ContainerConfig)) -> Self {
        change(&mut self.0);
        self
    }
}

/// What a kubelet asks for by default: processes of the container's own, everything else of the pod's.
pub(super) fn namespaces() -> NamespaceOption {
    NamespaceOption { network: OF_POD, pid: OF_CONTAINER, ipc: OF_POD, ..Default::default() }
}
