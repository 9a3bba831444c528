//! `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a container's own, as Docker makes them.
//!
//! They stand in the bundle and are bind mounts of the configuration, so that the image's layers stay as they are. The
//! sandbox carries files of this size to the guest by value.

use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Mount points, and names of the files in the bundle.
pub(crate) const FILES: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/hostname", "hostname"), ("/etc/resolv.conf", "resolv.conf")];

/// The host's own resolver configuration.
const HOST: &str = "/etc/resolv.conf";

/// Where systemd-resolved keeps the servers behind its stub.
const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";

/// systemd-resolved's stub.
const STUB: &str = "127.0.0.53";

/// Longest resolver configuration; the guest gets no longer file.
const MAX_RESOLV_CONF: u64 = 32 << 10;

/// Without a network the container has no other address than its loopback's.
const HOSTS: &str = "\
127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
";

/// A file that cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {path}")]
pub(crate) struct WriteError {
    path: PathBuf,
    source: std::io::Error,
}

/// Writes the three files into the bundle.
pub(crate) fn write(bundle: &Path, hostname: &str) -> Result<(), WriteError> {
    let contents =
        [HOSTS.to_owned(), format!("{hostname}\n"), resolv_conf(&read(HOST), || read(BEHIND_THE_STUB))];
    for ((_, name), content) in FILES.iter().zip(contents) {
        let path = bundle.join(name);
        write_one(&path, &content).map_err(|source| WriteError { path, source })?;
    }
    Ok(())
}

fn write_one(path: &Path, content: &str) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::write(path, content)?;
    // For everybody in the container, whatever the caller's umask.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

/// What cannot be read is as good as not there: names are then not resolved, as on the host.
fn read(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_RESOLV_CONF).read_to_end(&mut bytes));
    if read.is_err() {
        bytes.clear();
    }
    // A line that was cut names half a server.
    if bytes.len() as u64 == MAX_RESOLV_CONF {
        bytes.truncate(bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The host's configuration without the servers on its loopback, which the container's is not.
fn resolv_conf(host: &str, behind_the_stub: impl FnOnce() -> String) -> String {
    let stub_only = host.lines().filter_map(server).eq([STUB]);
    let behind =
        stub_only.then(behind_the_stub).filter(|text| text.lines().any(|line| server(line).is_some()));
    let text = behind.as_deref().unwrap_or(host);
    let kept = text.lines().filter(|line| !server(line).is_some_and(is_loopback));
    kept.flat_map(|line| [line, "\n"]).collect()
}

/// Address of a `nameserver` line (resolv.conf(5)).
fn server(line: &str) -> Option<&str> {
    let mut words = line.split_ascii_whitespace();
    (words.next()? == "nameserver").then(|| words.next())?
}

fn is_loopback(address: &str) -> bool {
    let address = address.split('%').next().unwrap_or(address);
    address.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn filtered(host: &str) -> String {
        resolv_conf(host, || panic!("nobody is behind a stub"))
    }

    #[test]
    fn files_have_the_hostname_and_are_readable_by_all() {
        let bundle = tempfile::tempdir().unwrap();
        write(bundle.path(), "web-1").unwrap();
        assert_eq!(fs::read_to_string(bundle.path().join("hostname")).unwrap(), "web-1\n");
        let hosts = fs::read_to_string(bundle.path().join("hosts")).unwrap();
        assert!(hosts.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ") && !hosts.contains("web-1"));
        for (_, name) in FILES {
            let mode = fs::metadata(bundle.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o644, "{name}");
        }
    }

    #[test]
    fn servers_on_the_loopback_are_left_out() {
        let host = "# by hand\nnameserver 127.0.0.1\nnameserver 10.0.0.2\nnameserver ::1\n\
                    nameserver 127.3.2.1 # cache\nnameserver fe80::1%eth0\nsearch example.org\noptions ndots:2";
        let kept =
            "# by hand\nnameserver 10.0.0.2\nnameserver fe80::1%eth0\nsearch example.org\noptions ndots:2\n";
        assert_eq!(filtered(host), kept);
        assert_eq!((filtered(""), filtered("nameserver\nx")), (String::new(), "nameserver\nx\n".to_owned()));
    }

    #[test]
    fn servers_behind_the_stub_of_systemd_are_taken() {
        let stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\n";
        assert_eq!(resolv_conf(stub, || "nameserver 10.0.0.3\n".into()), "nameserver 10.0.0.3\n");
        assert_eq!(resolv_conf(stub, String::new), "options edns0 trust-ad\n");
    }
}
