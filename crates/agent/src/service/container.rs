//! RPC methods on containers.

use std::sync::Arc;

use nacre_protocol::files::{FileName, MAX_FILE_BYTES, MAX_FILES};
use nacre_protocol::id::ContainerId;
use nacre_protocol::rpc::agent::{
    self, ContainerRequest, CreateContainerReply, CreateContainerRequest, Empty, ListProcessesReply,
    StatsReply, UpdateRequest,
};
use tokio::task::spawn_blocking;

use super::error::ServiceError;
use crate::agent::Agent;
use crate::container::{BlockDevice, BundleFile, Cgroup, CgroupError, LayerExtent, RootfsSource};
use crate::process::{self, Made, Wanted};

/// Longest OCI document: far above any real one (C09), far below what would hurt.
pub(super) const MAX_DOCUMENT: usize = 2 << 20;

/// The one file system that a disk may have.
const EXT4: &str = "ext4";

/// Most disks that a container uses as they are.
const MAX_BLOCK_DEVICES: usize = 16;

/// Most layers: overlayfs's own limit of lower directories (OVL_MAX_STACK).
const MAX_LAYERS: usize = 500;

pub(super) async fn create(
    agent: Arc<Agent>,
    mut request: CreateContainerRequest,
) -> Result<CreateContainerReply, ServiceError> {
    let id = request.container_id.parse()?;
    if request.spec_json.len() > MAX_DOCUMENT {
        return Err(ServiceError::Invalid("the OCI configuration is too long"));
    }
    let rootfs = rootfs(request.rootfs.take())?;
    let (files, devices) = (files(request.files)?, devices(request.devices)?);
    let stdio = request.stdio.take().unwrap_or_default();
    let wanted = Wanted { spec_json: request.spec_json, rootfs, files, devices };
    let made = process::create_container(&agent, id, wanted, &stdio).await?;
    let Made { pid, rootfs_us, create_us } = made;
    Ok(CreateContainerReply { pid, rootfs_us, create_us, ..Default::default() })
}

pub(super) async fn list(
    agent: Arc<Agent>,
    request: ContainerRequest,
) -> Result<ListProcessesReply, ServiceError> {
    let pids = with_cgroup(&agent, &request.container_id, Cgroup::pids).await?;
    Ok(ListProcessesReply { pids, ..Default::default() })
}

pub(super) async fn freeze(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, ServiceError> {
    with_cgroup(&agent, &request.container_id, Cgroup::freeze).await?;
    Ok(Empty::new())
}

pub(super) async fn thaw(agent: Arc<Agent>, request: ContainerRequest) -> Result<Empty, ServiceError> {
    with_cgroup(&agent, &request.container_id, Cgroup::thaw).await?;
    Ok(Empty::new())
}

pub(super) async fn update(agent: Arc<Agent>, request: UpdateRequest) -> Result<Empty, ServiceError> {
    if request.resources_json.len() > MAX_DOCUMENT {
        return Err(ServiceError::Invalid("the resources are too long"));
    }
    let UpdateRequest { container_id, resources_json, .. } = request;
    with_cgroup(&agent, &container_id, move |cgroup| cgroup.update(&resources_json)).await?;
    Ok(Empty::new())
}

pub(super) async fn stats(agent: Arc<Agent>, request: ContainerRequest) -> Result<StatsReply, ServiceError> {
    with_cgroup(&agent, &request.container_id, Cgroup::stats).await
}

/// Calls a function on a container's cgroup; it may block (freezing waits, statistics flush every CPU's share).
pub(super) async fn with_cgroup<T: Send + 'static>(
    agent: &Agent,
    id: &str,
    call: impl FnOnce(&Cgroup) -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, ServiceError> {
    let id: ContainerId = id.parse()?;
    let container = Arc::clone(agent.table.container(&id)?.container());
    let called = spawn_blocking(move || call(container.cgroup())).await;
    Ok(called.map_err(|_| ServiceError::CutShort)??)
}

fn rootfs(rootfs: Option<agent::Rootfs>) -> Result<RootfsSource, ServiceError> {
    match rootfs.and_then(|rootfs| rootfs.source) {
        Some(agent::rootfs::Source::Layered(layered)) => {
            if layered.layers.is_empty() || layered.layers.len() > MAX_LAYERS {
                return Err(ServiceError::Invalid("a layered root file system has 1 to 500 layers"));
            }
            let extent = |layer: &agent::Layer| LayerExtent {
                offset_bytes: layer.offset_bytes,
                length_bytes: layer.length_bytes,
            };
            Ok(RootfsSource::Layered {
                disk_id: layered.disk_id,
                layers: layered.layers.iter().map(extent).collect(),
                upper_limit_bytes: layered.upper_limit_bytes,
            })
        }
        Some(agent::rootfs::Source::Disk(disk)) if disk.fs_type == EXT4 => {
            Ok(RootfsSource::Disk { disk_id: disk.disk_id, read_only: disk.read_only })
        }
        Some(agent::rootfs::Source::Disk(_)) => {
            Err(ServiceError::Invalid("a root file system on a disk is ext4"))
        }
        Some(agent::rootfs::Source::Shared(shared)) => Ok(RootfsSource::Shared { name: shared.name }),
        Some(_) | None => Err(ServiceError::Invalid("the container has no root file system")),
    }
}

fn devices(devices: Vec<agent::BlockDevice>) -> Result<Vec<BlockDevice>, ServiceError> {
    if devices.len() > MAX_BLOCK_DEVICES {
        return Err(ServiceError::Invalid("the container has more than 16 disks"));
    }
    let device = |device: agent::BlockDevice| {
        if device.mode > 0o777 {
            return Err(ServiceError::Invalid("a device has a mode above 0777"));
        }
        let agent::BlockDevice { disk_id, path, mode, uid, gid, read_only, .. } = device;
        Ok(BlockDevice { disk_id, path, mode, uid, gid, read_only })
    };
    devices.into_iter().map(device).collect()
}

fn files(files: Vec<agent::BundleFile>) -> Result<Vec<BundleFile>, ServiceError> {
    if files.len() > MAX_FILES {
        return Err(ServiceError::Invalid("the container has more than 16 files"));
    }
    let mut out: Vec<BundleFile> = Vec::with_capacity(files.len());
    for file in files {
        let name: FileName = file.name.parse().map_err(|_| ServiceError::Invalid("a file's name is none"))?;
        if file.content.len() > MAX_FILE_BYTES || file.mode > 0o777 {
            return Err(ServiceError::Invalid("a file is longer than 64 KiB or has a mode above 0777"));
        }
        if out.iter().any(|other| other.name == name) {
            return Err(ServiceError::Invalid("two files have the same name"));
        }
        out.push(BundleFile { name, content: file.content, mode: file.mode });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, length: usize, mode: u32) -> agent::BundleFile {
        agent::BundleFile { name: name.into(), content: vec![0; length], mode, ..Default::default() }
    }

    #[test]
    fn files_within_the_bounds_are_taken() {
        let taken = files(vec![file("m0", MAX_FILE_BYTES, 0o777), file("m1", 0, 0)]).unwrap();
        assert_eq!(taken.iter().map(|file| file.name.as_str()).collect::<Vec<_>>(), ["m0", "m1"]);
    }

    #[test]
    fn a01_files_beyond_the_bounds_are_refused() {
        let bad = [
            vec![file("../m0", 1, 0o644)],
            vec![file("", 1, 0o644)],
            vec![file("m0", MAX_FILE_BYTES + 1, 0o644)],
            vec![file("m0", 1, 0o4755)],
            vec![file("m0", 1, 0o644), file("m0", 2, 0o644)],
            (0..=MAX_FILES).map(|at| file(&format!("m{at}"), 1, 0o644)).collect(),
        ];
        for list in bad {
            assert!(matches!(files(list.clone()), Err(ServiceError::Invalid(_))), "{:?}", list[0].name);
        }
    }

    #[test]
    fn too_many_disks_and_modes_that_are_none_are_refused() {
        let disk = |mode| agent::BlockDevice { mode, ..Default::default() };
        assert_eq!(devices(vec![disk(0o660); MAX_BLOCK_DEVICES]).unwrap().len(), MAX_BLOCK_DEVICES);
        for bad in [vec![disk(0o660); MAX_BLOCK_DEVICES + 1], vec![disk(0o4660)]] {
            assert!(matches!(devices(bad), Err(ServiceError::Invalid(_))));
        }
    }

    #[test]
    fn disk_with_another_file_system_than_ext4_is_refused() {
        let mut request = agent::Rootfs::new();
        let disk = agent::DiskRootfs { fs_type: "btrfs".into(), ..Default::default() };
        request.source = Some(agent::rootfs::Source::Disk(disk));
        assert!(matches!(rootfs(Some(request)), Err(ServiceError::Invalid(_))));
    }

    #[test]
    fn rootfs_without_a_source_is_refused() {
        assert!(matches!(rootfs(None), Err(ServiceError::Invalid(_))));
        assert!(matches!(rootfs(Some(agent::Rootfs::new())), Err(ServiceError::Invalid(_))));
    }

    #[test]
    fn more_layers_than_overlayfs_stacks_are_refused() {
        let mut layered = agent::LayeredRootfs::new();
        layered.layers = vec![agent::Layer::new(); MAX_LAYERS + 1];
        let mut request = agent::Rootfs::new();
        request.source = Some(agent::rootfs::Source::Layered(layered));
        assert!(matches!(rootfs(Some(request)), Err(ServiceError::Invalid(_))));
    }
}
