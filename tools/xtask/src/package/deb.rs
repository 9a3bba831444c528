//! The Debian package. `dpkg-deb`, which every Debian has, writes it; what it depends on is read from the programs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::layout::{self, Entry, PROGRAMS};
use super::{DEBIAN_ARCH, Time, VERSION};
use crate::packages::{self, Need};
use crate::process::{command, output, run};
use crate::project::Project;

/// Builds it in `out` and gives its path.
pub(super) fn build(project: &Project, out: &Path, time: Time) -> Result<PathBuf> {
    // objdump comes with the compiler.
    packages::ensure(&[Need::Compile])?;
    let mut entries = layout::debian(project)?;
    let scripts = project.root.join("tools/package");
    for name in ["prerm", "postrm"] {
        entries.push(Entry::script(scripts.join(name), &format!("DEBIAN/{name}"))?);
    }
    entries.push(Entry::text("/etc/nacre/config.toml\n".into(), "DEBIAN/conffiles"));
    entries.push(Entry::text(control(project)?, "DEBIAN/control"));
    let root = out.join("deb");
    layout::stage(&entries, &root, time)?;

    let to = out.join(format!("nacre_{VERSION}_{DEBIAN_ARCH}.deb"));
    // xz, since every dpkg reads it; with one thread, so that the number of cores changes no byte.
    let mut build = command("dpkg-deb", ["--build", "--root-owner-group", "-Zxz", "--threads-max=1"]);
    build.arg(&root).arg(&to).env("SOURCE_DATE_EPOCH", time.seconds.to_string());
    run(build.stdout(std::process::Stdio::null()))?;
    fs::remove_dir_all(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    Ok(to)
}

fn control(project: &Project) -> Result<String> {
    let mut dynamic = String::new();
    let mut size = 0;
    for name in PROGRAMS {
        let path = project.bin_dir().join(name);
        dynamic += &output(command("objdump", ["-p"]).arg(&path).env("LC_ALL", "C"))?;
        size += fs::metadata(&path)?.len();
    }
    for name in ["vmlinux", "initramfs.cpio"] {
        size += fs::metadata(project.install_dir().join("guest").join(name))?.len();
    }
    let depends = depends(&dynamic)?;
    let size_kib = size.div_ceil(1024);
    Ok(format!(
        "Package: nacre\n\
         Version: {VERSION}\n\
         Architecture: {DEBIAN_ARCH}\n\
         Maintainer: nacre maintainers <nacre@localhost.invalid>\n\
         Installed-Size: {size_kib}\n\
         Depends: {depends}\n\
         Suggests: containerd\n\
         Section: admin\n\
         Priority: optional\n\
         Description: containers, each in a micro-VM of its own\n \
         Runs OCI images, and pods of Kubernetes through containerd, each behind a\n \
         Linux kernel of its own: the command nacre, the shim containerd-shim-nacre-v2,\n \
         the VMM, the file server, the guest's kernel and its agent.\n"
    ))
}

/// The packages that bring the libraries which `objdump -p` of the programs names.
fn depends(dynamic: &str) -> Result<String> {
    let mut packages = BTreeSet::new();
    for library in dynamic.lines().filter_map(|line| line.trim().strip_prefix("NEEDED")) {
        packages.insert(match library.trim() {
            "libc.so.6" | "libm.so.6" | "ld-linux-x86-64.so.2" => "libc6",
            "libgcc_s.so.1" => "libgcc-s1",
            other => bail!("no package is known to bring {other}"),
        });
    }
    let words = packages.into_iter().map(|package| match glibc(dynamic) {
        Some((major, minor)) if package == "libc6" => format!("libc6 (>= {major}.{minor})"),
        _ => package.to_owned(),
    });
    Ok(words.collect::<Vec<_>>().join(", "))
}

/// The newest GLIBC_X.Y that a symbol asks for.
fn glibc(dynamic: &str) -> Option<(u32, u32)> {
    let versions = dynamic.split_whitespace().filter_map(|word| word.strip_prefix("GLIBC_"));
    versions
        .filter_map(|version| {
            let mut parts = version.split('.').map(str::parse);
            Some((parts.next()?.ok()?, parts.next()?.ok()?))
        })
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DYNAMIC: &str = "\
Dynamic Section:
  NEEDED               libgcc_s.so.1
  NEEDED               libc.so.6
Version References:
  required from libc.so.6:
    0x069691b4 0x00 12 GLIBC_2.34
    0x06969197 0x00 11 GLIBC_2.17
    0x09691a75 0x00 10 GLIBC_2.2.5
  required from libgcc_s.so.1:
    0x0b792650 0x00 07 GCC_3.0
";

    #[test]
    fn newest_version_of_the_c_library_is_asked_for() {
        assert_eq!(depends(DYNAMIC).unwrap(), "libc6 (>= 2.34), libgcc-s1");
    }

    #[test]
    fn unknown_library_is_an_error_that_names_it() {
        let error = depends("  NEEDED   libssl.so.3\n").unwrap_err();
        assert!(error.to_string().contains("libssl.so.3"), "{error}");
    }

    #[test]
    fn static_programs_depend_on_nothing() {
        assert_eq!(depends("file format elf64-x86-64\n").unwrap(), "");
    }
}
