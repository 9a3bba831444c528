//! Mounts: what every container has, `--volume`, `--tmpfs`, the image's volumes, and the container's own files in /etc.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::ImageDefaults;
use super::SpecError;
use super::limits::parse_bytes;
use crate::args::RunArgs;
use crate::etc;

/// OCI `mounts`, in the order in which they are made.
pub(super) fn build(args: &RunArgs, image: &ImageDefaults) -> Result<Vec<Value>, SpecError> {
    let mut out = standard(args)?;
    let mut own = Vec::new();
    for option in &args.tmpfs {
        own.push(tmpfs(option)?);
    }
    for option in &args.volume {
        own.push(volume(option)?);
    }
    // An image's volume that nothing was mounted on: empty memory, so that it is writable on a read-only root.
    for path in &image.volumes {
        let path = destination("VOLUME of the image", path)?;
        if !own.iter().any(|mount| mount["destination"] == path) && args.read_only {
            own.push(json!({ "destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"] }));
        }
    }
    // The container's own names and servers, where nothing of the user's is.
    for (path, name) in etc::FILES {
        if !own.iter().any(|mount| mount["destination"] == path) {
            own.push(json!({ "destination": path, "type": "bind", "source": name, "options": ["rbind", "rprivate"] }));
        }
    }
    // Parents before children.
    own.sort_by_key(|mount| mount["destination"].as_str().map_or(0, |path| path.matches('/').count()));
    out.extend(own);
    Ok(out)
}

fn standard(args: &RunArgs) -> Result<Vec<Value>, SpecError> {
    let shm = parse_bytes("--shm-size", &args.shm_size)?;
    let cgroup = if args.privileged { "rw" } else { "ro" };
    let sys = if args.privileged { "rw" } else { "ro" };
    Ok(vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys] }),
        json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": [cgroup, "nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
                "options": ["nosuid", "noexec", "nodev", "mode=1777", format!("size={shm}")] }),
    ])
}

/// `SRC:DST[:OPTIONS]`.
fn volume(option: &str) -> Result<Value, SpecError> {
    let bad = |reason: &str| SpecError::option("--volume", option, reason);
    let mut parts = option.split(':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(bad("expected SRC:DST[:ro]; anonymous volumes are not offered yet"));
    };
    let flags = parts.next().unwrap_or("");
    if parts.next().is_some() {
        return Err(bad("expected SRC:DST[:ro]"));
    }
    if !source.starts_with('/') {
        if source.starts_with('.') {
            return Err(bad("the source must be an absolute path"));
        }
        return Err(SpecError::NotOffered(format!(
            "the named volume {source:?} is not offered yet: give a directory of the host, beginning with /"
        )));
    }
    let target = destination("--volume", target)?;
    let mut options = vec!["rbind".to_owned()];
    for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
        match flag {
            // With all that is mounted below, as Docker's own.
            "ro" => options.push("rro".into()),
            "rw" | "rprivate" | "private" | "rslave" | "slave" => options.push(flag.into()),
            "z" | "Z" | "cached" | "delegated" | "consistent" => {}
            _ => return Err(bad("known options are ro and rw")),
        }
    }
    Ok(json!({ "destination": target, "type": "bind", "source": source_path(source)?, "options": options }))
}

/// The source without symlinks; a directory is made where nothing is, as Docker does.
fn source_path(source: &str) -> Result<PathBuf, SpecError> {
    let path = Path::new(source);
    let failed = |error| SpecError::VolumeSource { path: path.to_owned(), source: error };
    if std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        std::fs::create_dir_all(path).map_err(failed)?;
    }
    path.canonicalize().map_err(failed)
}

/// `DST[:OPTIONS]`, with Docker's defaults.
fn tmpfs(option: &str) -> Result<Value, SpecError> {
    let (target, flags) = option.split_once(':').unwrap_or((option, ""));
    let target = destination("--tmpfs", target)?;
    let mut options: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
    for flag in flags.split(',').filter(|flag| !flag.is_empty()) {
        match flag {
            "exec" | "suid" | "dev" => options.retain(|known| known != &format!("no{flag}")),
            "rw" | "ro" | "noexec" | "nosuid" | "nodev" => options.push(flag.into()),
            _ if flag.starts_with("size=") || flag.starts_with("mode=") => options.push(flag.into()),
            _ if flag.starts_with("uid=") || flag.starts_with("gid=") || flag.starts_with("nr_inodes=") => {
                options.push(flag.into());
            }
            _ => return Err(SpecError::option("--tmpfs", option, format!("unknown option {flag:?}"))),
        }
    }
    Ok(json!({ "destination": target, "type": "tmpfs", "source": "tmpfs", "options": options }))
}

/// A mount point: absolute, and cleaned without looking at any file system, so that it cannot climb out.
fn destination(option: &'static str, path: &str) -> Result<String, SpecError> {
    if !path.starts_with('/') || path.contains('\0') {
        return Err(SpecError::option(option, path, "the destination must be an absolute path"));
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    if parts.is_empty() {
        return Err(SpecError::option(option, path, "the destination cannot be /"));
    }
    Ok(format!("/{}", parts.join("/")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn volume_with_ro_is_a_read_only_bind() {
        let mount = volume("/tmp:/data:ro").unwrap();
        assert_eq!(mount["destination"], "/data");
        assert_eq!(mount["options"], json!(["rbind", "rro"]));
    }

    #[test]
    fn named_volume_is_refused_in_plain_words() {
        assert!(volume("data:/data").unwrap_err().to_string().contains("named volume"));
    }

    #[test]
    fn i10_volume_path_cannot_climb_out() {
        assert_eq!(destination("-v", "/../../etc").unwrap(), "/etc");
        assert!(destination("-v", "/..").is_err());
    }

    #[test]
    fn tmpfs_exec_takes_noexec_away() {
        let mount = tmpfs("/x:exec,size=1m").unwrap();
        assert_eq!(mount["options"], json!(["nosuid", "nodev", "size=1m"]));
    }

    proptest! {
        #[test]
        fn destinations_are_clean(path in "/[a-z./]{0,30}") {
            if let Ok(clean) = destination("-v", &path) {
                prop_assert!(clean.starts_with('/') && !clean.contains("//"));
                prop_assert!(clean.split('/').all(|part| part != ".." && part != "."));
            }
        }
    }
}
