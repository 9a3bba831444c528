//! Options and image -> OCI runtime configuration (`config.json`), with Docker's defaults.
//!
//! Pure but for what the options name on the host: environment files, seccomp profiles and volume sources.

mod caps;
mod env;
mod limits;
mod mounts;
mod process;
mod seccomp;

use std::path::PathBuf;

use nacre_protocol::annotations;
use serde_json::{Value, json};

use crate::args::RunArgs;

pub(crate) use caps::all as all_capabilities;
pub(crate) use env::environment;
pub(crate) use process::{command_line, user};

/// What an image says of how it is run.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageDefaults {
    pub(crate) env: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) user: String,
    pub(crate) working_dir: String,
    pub(crate) volumes: Vec<String>,
}

/// An option that cannot be meant.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("invalid {option} {value:?}: {reason}")]
    Option { option: &'static str, value: String, reason: String },
    #[error("{0}")]
    NotOffered(String),
    #[error("no command: the image has none, and none was given")]
    NoCommand,
    #[error("cannot read {path}")]
    File { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a seccomp profile")]
    Profile { path: PathBuf, source: serde_json::Error },
    #[error("cannot create the volume source {path}")]
    VolumeSource { path: PathBuf, source: std::io::Error },
}

impl SpecError {
    pub(crate) fn option(option: &'static str, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Option { option, value: value.into(), reason: reason.into() }
    }
}

/// Names that the container has before it runs.
#[derive(Debug, Clone)]
pub(crate) struct Identity<'a> {
    pub(crate) id: &'a str,
    pub(crate) hostname: &'a str,
}

/// The OCI runtime configuration that `args` mean for an image (OCI runtime specification 1.2, config.md).
///
/// # Errors
/// An option that cannot be meant, each with what is wrong about it.
pub(crate) fn build(args: &RunArgs, image: &ImageDefaults, who: &Identity<'_>) -> Result<Value, SpecError> {
    if args.network != "none" {
        return Err(SpecError::NotOffered(format!(
            "network {:?} is not offered yet: use --network none",
            args.network
        )));
    }
    let caps = caps::resolve(&args.cap_add, &args.cap_drop, args.privileged)?;
    let security = SecurityOptions::parse(&args.security_opt)?;
    let args_line = command_line(args.entrypoint.as_deref(), &args.command, image)?;
    let cwd = match args.workdir.as_deref().unwrap_or(&image.working_dir) {
        "" => "/",
        dir if dir.starts_with('/') => dir,
        dir => return Err(SpecError::option("--workdir", dir, "it must begin with /")),
    };
    let mut process = json!({
        "terminal": args.tty,
        "user": process::user(args.user.as_deref().unwrap_or(&image.user))?,
        "args": args_line,
        "env": environment(&image.env, &args.env, &args.env_file, args.tty, Some(who.hostname))?,
        "cwd": cwd,
        "capabilities": { "bounding": caps, "effective": caps, "permitted": caps },
        "noNewPrivileges": security.no_new_privileges,
    });
    let rlimits = limits::ulimits(&args.ulimit)?;
    if !rlimits.is_empty() {
        process["rlimits"] = Value::Array(rlimits);
    }
    let namespaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"].map(|kind| json!({ "type": kind }));
    let mut linux = json!({
        "namespaces": namespaces,
        "resources": limits::resources(args)?,
        "cgroupsPath": format!("/nacre/{}", who.id),
    });
    if !args.privileged {
        linux["maskedPaths"] = json!(process::MASKED_PATHS);
        linux["readonlyPaths"] = json!(process::READONLY_PATHS);
        if let Some(profile) = security.profile(&caps)? {
            linux["seccomp"] = profile;
        }
    }
    let mut config = json!({
        "ociVersion": "1.2.0",
        "process": process,
        "root": { "path": "rootfs", "readonly": args.read_only },
        "hostname": who.hostname,
        "mounts": mounts::build(args, image)?,
        "linux": linux,
    });
    if args.init {
        config["annotations"] = json!({ annotations::INIT: "true" });
    }
    Ok(config)
}

/// `--security-opt`, all of them together.
#[derive(Debug, Default)]
struct SecurityOptions {
    no_new_privileges: bool,
    seccomp: Seccomp,
}

#[derive(Debug, Default)]
enum Seccomp {
    #[default]
    Default,
    Unconfined,
    File(PathBuf),
}

impl SecurityOptions {
    fn parse(options: &[String]) -> Result<Self, SpecError> {
        let mut out = Self::default();
        for option in options {
            let (key, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (key, value) {
                ("no-new-privileges", "" | "true") => out.no_new_privileges = true,
                ("no-new-privileges", "false") => out.no_new_privileges = false,
                ("seccomp", "unconfined") => out.seccomp = Seccomp::Unconfined,
                ("seccomp", "builtin") => out.seccomp = Seccomp::Default,
                ("seccomp", file) if !file.is_empty() => out.seccomp = Seccomp::File(file.into()),
                ("apparmor" | "label", _) => {
                    return Err(SpecError::NotOffered(format!(
                        "--security-opt {key} is not offered: the guest kernel has neither AppArmor nor SELinux"
                    )));
                }
                _ => {
                    let known = "known are no-new-privileges and seccomp=unconfined|builtin|FILE";
                    return Err(SpecError::option("--security-opt", option, known));
                }
            }
        }
        Ok(out)
    }

    fn profile(&self, caps: &[String]) -> Result<Option<Value>, SpecError> {
        match &self.seccomp {
            Seccomp::Default => Ok(Some(seccomp::default_profile(caps))),
            Seccomp::Unconfined => Ok(None),
            Seccomp::File(path) => seccomp::from_file(path, caps).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, Command};

    fn run_args(words: &[&str]) -> RunArgs {
        let args = Args::try_parse_from(["nacre", "run"].iter().chain(words)).unwrap();
        let Command::Run(run) = args.command else { panic!("not run") };
        *run
    }

    fn spec(words: &[&str]) -> Result<Value, SpecError> {
        let image = ImageDefaults { cmd: vec!["sh".into()], user: "daemon".into(), ..Default::default() };
        build(&run_args(words), &image, &Identity { id: "abc", hostname: "abc" })
    }

    #[test]
    fn default_configuration_parses_as_oci() {
        let value = spec(&["img"]).unwrap();
        let parsed: oci_spec::runtime::Spec = serde_json::from_value(value).unwrap();
        let process = parsed.process().as_ref().unwrap();
        assert_eq!(process.args().as_ref().unwrap(), &["sh"]);
        assert_eq!(process.user().username().as_deref(), Some("daemon"));
        let caps = process.capabilities().as_ref().unwrap();
        assert_eq!(caps.bounding().as_ref().unwrap().len(), 14);
        assert!(caps.inheritable().is_none() && caps.ambient().is_none());
        assert!(parsed.linux().as_ref().unwrap().seccomp().is_some());
    }

    #[test]
    fn other_networks_are_refused() {
        assert!(spec(&["--network", "bridge", "img"]).unwrap_err().to_string().contains("not offered"));
    }

    #[test]
    fn init_is_asked_for_by_annotation() {
        assert_eq!(spec(&["--init", "img"]).unwrap()["annotations"]["dev.nacre.init"], "true");
        assert!(spec(&["img"]).unwrap().get("annotations").is_none());
    }

    #[test]
    fn names_and_servers_are_mounted_where_the_user_mounts_nothing() {
        let sources = |words: &[&str], path: &str| -> Vec<String> {
            let value = spec(words).unwrap();
            let mounts = value["mounts"].as_array().unwrap();
            let on = mounts.iter().filter(|mount| mount["destination"] == path);
            on.map(|mount| mount["source"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(sources(&["img"], "/etc/hosts"), ["hosts"]);
        assert_eq!(sources(&["-v", "/etc/hosts:/etc/./hosts:ro", "img"], "/etc/hosts"), ["/etc/hosts"]);
        assert_eq!(sources(&["--tmpfs", "/etc/hostname", "img"], "/etc/hostname"), ["tmpfs"]);
        assert_eq!(sources(&["-v", "/etc:/etc", "img"], "/etc/resolv.conf"), ["resolv.conf"]);
    }

    #[test]
    fn detach_keys_are_dockers_unless_others_are_given() {
        assert_eq!(run_args(&["img"]).detach_keys, "ctrl-p,ctrl-q".parse().unwrap());
        assert_eq!(run_args(&["--detach-keys", "ctrl-x,x", "img"]).detach_keys, "ctrl-x,x".parse().unwrap());
        assert!(Args::try_parse_from(["nacre", "run", "--detach-keys", "ctrl-", "img"]).is_err());
    }

    #[test]
    fn relative_workdir_is_refused() {
        assert!(spec(&["-w", "tmp", "img"]).is_err());
    }

    #[test]
    fn unconfined_has_no_seccomp() {
        let value = spec(&["--security-opt", "seccomp=unconfined", "img"]).unwrap();
        assert!(value["linux"].get("seccomp").is_none());
    }

    #[test]
    fn privileged_masks_nothing_and_has_every_capability() {
        let value = spec(&["--privileged", "img"]).unwrap();
        assert!(value["linux"].get("maskedPaths").is_none());
        assert_eq!(value["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 41);
    }

    #[test]
    fn options_after_the_image_belong_to_the_command() {
        let value = spec(&["img", "ls", "-l", "--rm"]).unwrap();
        assert_eq!(value["process"]["args"], json!(["ls", "-l", "--rm"]));
    }
}
