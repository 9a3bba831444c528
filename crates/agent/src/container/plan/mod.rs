//! OCI configuration -> plan: everything that can be checked without touching the guest is checked here.
//!
//! A plan is plain data. The agent fills in descriptors for what only it may open ([`FdRef`]) and sends the plan to
//! the child, which carries it out in order and looks at nothing else.
//!
//! What is not honoured, and why: AppArmor profiles and SELinux labels (the guest kernel has neither), hooks for the
//! host's side of a container (they run on the host), RDT and memory policy (host hardware),
//! `linux.cgroupsPath` (the host's tree; in the guest a container's cgroup is `nacre/<id>`).

mod devices;
mod mounts;
mod namespaces;
mod paths;
mod process;
mod sysctl;

use nacre_protocol::annotations;
use oci_spec::runtime::{Linux, LinuxPersonalityDomain, Spec};
use serde::{Deserialize, Serialize};

pub(crate) use devices::{DevicePlan, NodeKind};
pub(crate) use mounts::{MountPlan, MountSource};
pub use namespaces::IdMaps;
pub(crate) use namespaces::{CLONE_NEWTIME, IdMap, JoinPlan, NamespacesPlan};
pub(crate) use paths::clean;
pub use process::InvalidProcess;
pub(crate) use process::{CapabilityPlan, ProcessPlan, UserPlan};

use crate::container::cgroup::{InvalidResources, Resources};
use crate::container::seccomp::{Filter, InvalidProfile};

/// Longest configuration in bytes.
pub(crate) const MAX_SPEC_BYTES: usize = 4 << 20;

/// Index into the descriptors that travel with the orders.
pub(crate) type FdRef = u32;

/// A configuration that cannot become a container.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSpec {
    /// It is longer than 4 MiB.
    #[error("configuration has {0} bytes, at most {MAX_SPEC_BYTES} are allowed")]
    TooLong(usize),
    /// It is not the JSON of an OCI configuration.
    #[error("configuration is not valid JSON of the OCI runtime specification")]
    Json(#[source] serde_json::Error),
    /// A part that every container needs is missing.
    #[error("configuration has no {0}")]
    Missing(&'static str),
    /// Something that is valid and that this agent does not do.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// A path that is not absolute, has a NUL or goes beyond PATH_MAX.
    #[error("{what} {path:?} is not a usable absolute path")]
    Path {
        /// Which path.
        what: &'static str,
        /// The path.
        path: String,
    },
    /// A mount that cannot be.
    #[error("mount of {destination:?}: {problem}")]
    Mount {
        /// Where it was to go.
        destination: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A namespace is named twice, or cannot be joined.
    #[error("namespace {kind}: {problem}")]
    Namespace {
        /// Its type.
        kind: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// User or group id mappings that the kernel would not take.
    #[error("id mappings: {0}")]
    IdMap(&'static str),
    /// A device node that cannot be.
    #[error("device {path:?}: {problem}")]
    Device {
        /// Its path.
        path: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A sysctl outside the namespaced ones, or with an unusable value.
    #[error("sysctl {key:?}: {problem}")]
    Sysctl {
        /// Its name.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A hostname or domainname that is none.
    #[error("{0} {1:?} is not one to 64 letters, digits, '-', '_' or '.'")]
    Hostname(&'static str, String),
    /// The process part.
    #[error(transparent)]
    Process(#[from] InvalidProcess),
    /// The seccomp part.
    #[error("seccomp")]
    Seccomp(#[source] InvalidProfile),
    /// The resources part.
    #[error("resources")]
    Resources(#[source] InvalidResources),
}

/// What the child of a new container does.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerPlan {
    pub(crate) namespaces: NamespacesPlan,
    pub(crate) root_readonly: bool,
    /// MS_* propagation of the root mount; 0: private.
    pub(crate) root_propagation: u64,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) readonly_paths: Vec<String>,
    /// Paths below /proc/sys, with values.
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) first_process: FirstProcess,
}

/// What PID 1 of the container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum FirstProcess {
    /// The program.
    Program,
    /// An init, whose child the program is.
    Init,
}

/// A whole configuration, parsed.
#[derive(Debug)]
pub(crate) struct Plan {
    /// For the child.
    pub(crate) container: ContainerPlan,
    /// For the child: the init process.
    pub(crate) process: ProcessPlan,
    /// For the agent: limits of the cgroup.
    pub(crate) resources: Resources,
    /// For init and every exec: the compiled seccomp profile.
    pub(crate) filter: Option<Filter>,
    /// For init and every exec.
    pub(crate) personality: Option<u32>,
}

impl Plan {
    /// Parses and checks `config.json`.
    ///
    /// # Errors
    /// [`InvalidSpec`], naming the part.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, InvalidSpec> {
        if json.len() > MAX_SPEC_BYTES {
            return Err(InvalidSpec::TooLong(json.len()));
        }
        let spec: Spec = serde_json::from_slice(json).map_err(InvalidSpec::Json)?;
        Self::from_spec(&spec)
    }

    fn from_spec(spec: &Spec) -> Result<Self, InvalidSpec> {
        refuse_guest_hooks(spec)?;
        let process = spec.process().as_ref().ok_or(InvalidSpec::Missing("process"))?;
        let no_linux = Linux::default_empty();
        let linux = spec.linux().as_ref().unwrap_or(&no_linux);
        let namespaces = NamespacesPlan::from_linux(linux)?;
        let mounts = mounts::from_spec(spec.mounts().as_deref().unwrap_or_default())?;
        let devices = devices::from_linux(linux.devices().as_deref().unwrap_or_default())?;
        let container = ContainerPlan {
            root_readonly: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
            root_propagation: root_propagation(linux.rootfs_propagation().as_deref())?,
            mounts,
            devices,
            masked_paths: paths::all_clean("masked path", linux.masked_paths().as_deref())?,
            readonly_paths: paths::all_clean("readonly path", linux.readonly_paths().as_deref())?,
            sysctls: sysctl::from_linux(linux.sysctl().as_ref())?,
            hostname: host_name("hostname", spec.hostname().as_deref())?,
            domainname: host_name("domainname", spec.domainname().as_deref())?,
            first_process: first_process(spec, &namespaces)?,
            namespaces,
        };
        let needs_uts = container.hostname.is_some() || container.domainname.is_some();
        if needs_uts && !container.namespaces.has(libc::CLONE_NEWUTS as u64) {
            return Err(InvalidSpec::Namespace {
                kind: "uts".into(),
                problem: "a hostname needs a uts namespace of the container's own",
            });
        }
        Ok(Self {
            process: ProcessPlan::from_oci(process)?,
            resources: match linux.resources() {
                Some(resources) => Resources::from_oci(resources).map_err(InvalidSpec::Resources)?,
                None => Resources::default(),
            },
            filter: linux
                .seccomp()
                .as_ref()
                .map(Filter::compile)
                .transpose()
                .map_err(InvalidSpec::Seccomp)?,
            personality: linux.personality().as_ref().map(|personality| match personality.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => 0x8,
            }),
            container,
        })
    }
}

/// An absent `linux` object. [`Linux::default`] would bring namespaces and paths that nobody asked for.
trait DefaultEmpty {
    fn default_empty() -> Self;
}

impl DefaultEmpty for Linux {
    fn default_empty() -> Self {
        serde_json::from_str("{}").unwrap_or_default()
    }
}

/// Hooks that the specification wants run in the container's namespaces would have to exist in the guest.
fn refuse_guest_hooks(spec: &Spec) -> Result<(), InvalidSpec> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    let asked = |hooks: &Option<Vec<_>>| hooks.as_ref().is_some_and(|hooks| !hooks.is_empty());
    if asked(hooks.create_container()) {
        return Err(InvalidSpec::Unsupported("a createContainer hook".into()));
    }
    if asked(hooks.start_container()) {
        return Err(InvalidSpec::Unsupported("a startContainer hook".into()));
    }
    Ok(())
}

fn first_process(spec: &Spec, namespaces: &NamespacesPlan) -> Result<FirstProcess, InvalidSpec> {
    match spec.annotations().as_ref().and_then(|all| all.get(annotations::INIT)).map(String::as_str) {
        None | Some("false") => Ok(FirstProcess::Program),
        // Elsewhere its orphans would go to another process.
        Some("true") if namespaces.new & libc::CLONE_NEWPID as u64 == 0 => Err(InvalidSpec::Namespace {
            kind: "pid".into(),
            problem: "an init needs a pid namespace of the container's own",
        }),
        Some("true") => Ok(FirstProcess::Init),
        Some(other) => {
            Err(InvalidSpec::Unsupported(format!("annotation {} with value {other:?}", annotations::INIT)))
        }
    }
}

fn root_propagation(text: Option<&str>) -> Result<u64, InvalidSpec> {
    match text {
        None | Some("") => Ok(0),
        Some(text) => mounts::propagation(text.strip_prefix('r').unwrap_or(text))
            .ok_or_else(|| InvalidSpec::Unsupported(format!("rootfsPropagation {text:?}"))),
    }
}

/// Checks a name for sethostname(2): `[A-Za-z0-9._-]`, at most 64 bytes (C13: it ends up in files and prompts).
fn host_name(what: &'static str, name: Option<&str>) -> Result<Option<String>, InvalidSpec> {
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_');
    if name.len() > 64 || !name.bytes().all(good) {
        return Err(InvalidSpec::Hostname(what, name.to_owned()));
    }
    Ok(Some(name.to_owned()))
}

#[cfg(test)]
mod tests;
