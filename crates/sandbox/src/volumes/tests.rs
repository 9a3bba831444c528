use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Duration;

use nacre_protocol::rpc::agent::volume_entry::Kind;
use nacre_protocol::volumes::{MAX_BYTES, MAX_ENTRIES};
use tempfile::TempDir;

use super::*;
use crate::users::IdMap;

fn volume(dir: &TempDir) -> Volume {
    Volume { name: "c1-m0".into(), source: dir.path().to_owned(), users: None }
}

/// What a kubelet does to change a volume.
fn publish(dir: &Path, version: &str, text: &str) {
    let data = dir.join(format!("..{version}"));
    fs::create_dir(&data).unwrap();
    fs::write(data.join("key"), text).unwrap();
    symlink(format!("..{version}"), dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
}

fn paths(entries: &[VolumeEntry]) -> Vec<&str> {
    entries.iter().map(|entry| entry.path.as_str()).collect()
}

#[test]
fn volumes_are_known_by_a_kubelets_paths() {
    for path in [
        "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~configmap/config",
        "/data/kubelet/pods/u1/volumes/kubernetes.io~projected/kube-api-access-x",
    ] {
        assert!(is_kept_by_a_kubelet(Path::new(path)), "{path}");
    }
    for path in [
        "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~empty-dir/scratch",
        "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~secret",
        "/var/lib/kubelet/pods/u1/volumes/kubernetes.io~secret/s/key",
        "/var/lib/kubelet/pods/../volumes/kubernetes.io~secret/s",
        "pods",
        "/",
    ] {
        assert!(!is_kept_by_a_kubelet(Path::new(path)), "{path}");
    }
}

#[test]
fn everything_is_read_with_its_mode_and_directories_first() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), "1", "first");
    symlink("..data/key", dir.path().join("key")).unwrap();
    fs::set_permissions(dir.path().join("..1/key"), fs::Permissions::from_mode(0o440)).unwrap();
    fs::set_permissions(dir.path().join("..1"), fs::Permissions::from_mode(0o2750)).unwrap();
    let content = open(&volume(&dir)).unwrap().content;
    assert_eq!(paths(&content), ["", "..1", "..1/key", "..data", "key"]);
    assert_eq!((content[1].mode, content[2].mode), (0o2750, 0o440));
    assert_eq!(content[2].kind, Some(Kind::File(b"first".to_vec())));
    assert_eq!(content[3].kind, Some(Kind::Link("..1".into())));
}

#[test]
fn f01_links_are_read_and_never_followed() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/etc", dir.path().join("etc")).unwrap();
    symlink("/etc/passwd", dir.path().join("passwd")).unwrap();
    let content = open(&volume(&dir)).unwrap().content;
    assert_eq!(paths(&content), ["", "etc", "passwd"]);
    assert_eq!(content[2].kind, Some(Kind::Link("/etc/passwd".into())));
}

#[test]
fn volume_that_is_too_large_or_holds_a_fifo_does_not_cross_by_value() {
    let unsupported = |dir: &TempDir| open(&volume(dir)).unwrap_err().kind() == io::ErrorKind::Unsupported;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("most"), vec![0; MAX_BYTES]).unwrap();
    open(&volume(&dir)).unwrap();
    fs::write(dir.path().join("more"), "x").unwrap();
    assert!(unsupported(&dir));

    let dir = tempfile::tempdir().unwrap();
    for number in 0..MAX_ENTRIES {
        fs::write(dir.path().join(number.to_string()), "").unwrap();
    }
    assert!(unsupported(&dir));

    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    assert!(unsupported(&dir));
}

#[tokio::test]
async fn each_change_is_noticed_once_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), "1", "first");
    let mut open = open(&volume(&dir)).unwrap();
    let patience = Duration::from_secs(30);
    for (version, text) in [("2", "second"), ("3", "third")] {
        publish(dir.path(), version, text);
        tokio::time::timeout(patience, open.watch.changed()).await.unwrap();
        let content = read_watched(&open.volume, &open.tree, &mut open.watch).unwrap();
        let data = content.iter().find(|entry| entry.path == "..data").unwrap();
        assert_eq!(data.kind, Some(Kind::Link(format!("..{version}"))));
    }
    // Also in a directory that came later.
    fs::write(dir.path().join("..3/key"), "in place").unwrap();
    tokio::time::timeout(patience, open.watch.changed()).await.unwrap();
}

#[test]
fn owners_are_those_of_the_user_namespace_where_that_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    publish(dir.path(), "1", "first");
    let line = |host| vec![IdMap { container: 0, host, size: 65_536 }];
    let users = IdMaps::new(line(100_000), line(200_000)).unwrap();
    let mut open = open(&Volume { users, ..volume(&dir) }).unwrap();
    let owner = fs::metadata(dir.path()).map(|data| (data.uid(), data.gid())).unwrap();
    let expected = (100_000 + owner.0, 200_000 + owner.1);
    publish(dir.path(), "2", "second");
    let later = read_watched(&open.volume, &open.tree, &mut open.watch).unwrap();
    for entry in open.content.iter().chain(&later) {
        assert_eq!((entry.uid, entry.gid), expected, "{}", entry.path);
    }
}
