//! Block devices of the host that a container is given: raw block volumes of Kubernetes, `--device` of Docker.
//!
//! Each becomes a disk of the VM, and a node in the container that has the disk's number in the guest. A container that may
//! use every device (a privileged one: the CRI lists all of the host's then) gets none of them: privileged means the
//! guest's devices here, never the host's. Character devices stay as they are: their numbers are the same in every kernel,
//! and so name the guest's own.

use serde_json::Value;

use crate::text::harmless;

/// Most of one container.
pub const MAX_BLOCK_DEVICES: usize = 16;

/// A block device of the host for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockDevice {
    /// Serial of its disk.
    pub disk_id: String,
    /// Where its node goes in the container.
    pub path: String,
    /// Its number on the host.
    pub major: u32,
    /// Its number on the host.
    pub minor: u32,
    /// Permission bits of the node.
    pub mode: u32,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// Writes are refused on the host's side.
    pub read_only: bool,
}

/// A list of devices that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A device without a number, or with one that is none.
    #[error("block device {0:?} has no valid number")]
    Number(String),
    /// More than a VM has slots for.
    #[error("the container has {0} block devices, at most {MAX_BLOCK_DEVICES} are possible")]
    TooMany(usize),
}

/// Takes block devices and the rules for them out of the document: their numbers are the host's, and mean something else in
/// the guest. `prefix` begins the serials of their disks. `mounted` are those that the container has as mounts, each of which it
/// was given by name, also a privileged one.
pub(super) fn take(
    document: &mut Value,
    prefix: &str,
    mounted: Vec<BlockDevice>,
) -> Result<Vec<BlockDevice>, DeviceError> {
    let mut all = of_list(document, prefix)?;
    all.extend(mounted);
    if all.len() > MAX_BLOCK_DEVICES { Err(DeviceError::TooMany(all.len())) } else { Ok(all) }
}

fn of_list(document: &mut Value, prefix: &str) -> Result<Vec<BlockDevice>, DeviceError> {
    let Some(linux) = document.get_mut("linux").and_then(Value::as_object_mut) else { return Ok(Vec::new()) };
    let rules = linux.get_mut("resources").and_then(|resources| resources.get_mut("devices"));
    let mut rules = rules.and_then(Value::as_array_mut);
    let privileged = rules.as_ref().is_some_and(|rules| rules.iter().any(allows_everything));
    let writable: Vec<(u64, u64)> =
        rules.iter().flat_map(|rules| rules.iter()).filter_map(writes_to).collect();
    if let Some(rules) = &mut rules {
        rules.retain(|rule| !is_of_a_block_device(rule));
    }
    let Some(devices) = linux.get_mut("devices").and_then(Value::as_array_mut) else { return Ok(Vec::new()) };
    let (blocks, rest): (Vec<Value>, Vec<Value>) =
        devices.drain(..).partition(|device| device.get("type").and_then(Value::as_str) == Some("b"));
    *devices = rest;
    if privileged {
        return Ok(Vec::new());
    }
    if blocks.len() > MAX_BLOCK_DEVICES {
        return Err(DeviceError::TooMany(blocks.len()));
    }
    blocks.iter().enumerate().map(|(index, device)| parse(device, prefix, index, &writable)).collect()
}

fn parse(
    device: &Value,
    prefix: &str,
    index: usize,
    writable: &[(u64, u64)],
) -> Result<BlockDevice, DeviceError> {
    let path = device.get("path").and_then(Value::as_str).unwrap_or_default().to_owned();
    let number = |key: &str| {
        let value = device.get(key).and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok());
        value.ok_or_else(|| DeviceError::Number(harmless(&path, 256)))
    };
    let (major, minor) = (number("major")?, number("minor")?);
    let small =
        |key: &str| device.get(key).and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok());
    Ok(BlockDevice {
        disk_id: format!("{prefix}dev{index}"),
        major,
        minor,
        mode: small("fileMode").unwrap_or(0o660) & 0o777,
        uid: small("uid").unwrap_or(0),
        gid: small("gid").unwrap_or(0),
        read_only: !writable.contains(&(major.into(), minor.into())),
        path,
    })
}

fn text<'a>(rule: &'a Value, key: &str, default: &'a str) -> &'a str {
    rule.get(key).and_then(Value::as_str).unwrap_or(default)
}

fn is_allowed(rule: &Value) -> bool {
    rule.get("allow").and_then(Value::as_bool).unwrap_or(false)
}

/// A rule of the form that Docker and the CRI give privileged containers.
fn allows_everything(rule: &Value) -> bool {
    let any = |key: &str| rule.get(key).is_none_or(|value| value.is_null() || value.as_i64() == Some(-1));
    is_allowed(rule) && matches!(text(rule, "type", "a"), "a" | "") && any("major") && any("minor")
}

fn is_of_a_block_device(rule: &Value) -> bool {
    text(rule, "type", "a") == "b" && rule.get("major").is_some_and(|value| value.as_i64() != Some(-1))
}

/// The device that a rule allows writing to.
fn writes_to(rule: &Value) -> Option<(u64, u64)> {
    let writes = is_allowed(rule) && is_of_a_block_device(rule) && text(rule, "access", "rwm").contains('w');
    if writes { Some((rule.get("major")?.as_u64()?, rule.get("minor")?.as_u64()?)) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(devices: Value, rules: Value) -> Value {
        json!({"linux": {"devices": devices, "resources": {"devices": rules}}})
    }

    #[test]
    fn block_device_becomes_a_disk_and_its_number_stays_here() {
        let disk =
            json!({"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16, "fileMode": 432, "gid": 6});
        let fuse = json!({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229});
        let deny = json!({"allow": false, "access": "rwm"});
        let rule = json!({"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rwm"});
        let mut document = document(json!([disk, fuse]), json!([deny, rule]));
        let taken = take(&mut document, "c2-", vec![]).unwrap();
        let expected = BlockDevice {
            disk_id: "c2-dev0".into(),
            path: "/dev/xvda".into(),
            major: 8,
            minor: 16,
            mode: 0o660,
            uid: 0,
            gid: 6,
            read_only: false,
        };
        assert_eq!(taken, [expected]);
        assert_eq!(document["linux"]["devices"], json!([fuse]));
        assert_eq!(document["linux"]["resources"]["devices"], json!([deny]));
    }

    #[test]
    fn device_that_may_not_be_written_is_a_read_only_disk() {
        let disk = json!({"path": "/dev/xvda", "type": "b", "major": 8, "minor": 16});
        let rule = json!({"allow": true, "type": "b", "major": 8, "minor": 16, "access": "rm"});
        assert!(take(&mut document(json!([disk]), json!([rule])), "", vec![]).unwrap()[0].read_only);
        assert!(take(&mut document(json!([disk]), json!([])), "", vec![]).unwrap()[0].read_only);
    }

    #[test]
    fn b5_privileged_container_gets_none_of_the_hosts_disks() {
        let disk = json!({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0});
        for everything in [
            json!({"allow": true, "access": "rwm"}),
            json!({"allow": true, "type": "a", "access": "rwm"}),
            json!({"allow": true, "type": "a", "major": -1, "minor": null}),
        ] {
            let mut document = document(json!([disk]), json!([everything]));
            assert_eq!(take(&mut document, "", vec![]).unwrap(), []);
            assert_eq!(document["linux"]["devices"], json!([]));
        }
    }

    #[test]
    fn devices_without_a_number_and_too_many_of_them_are_refused() {
        let bad = json!({"path": "/dev/x", "type": "b", "major": -1, "minor": 0});
        assert_eq!(
            take(&mut document(json!([bad]), json!([])), "", vec![]),
            Err(DeviceError::Number("/dev/x".into()))
        );
        let disk = json!({"path": "/dev/x", "type": "b", "major": 8, "minor": 0});
        let many = Value::Array(vec![disk; MAX_BLOCK_DEVICES + 1]);
        assert_eq!(take(&mut document(many, json!([])), "", vec![]), Err(DeviceError::TooMany(17)));
        assert_eq!(take(&mut json!({}), "", vec![]).unwrap(), []);
    }
}
