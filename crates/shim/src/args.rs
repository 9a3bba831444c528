//! The command line, as containerd's Go library parses it: `-flag value`, `-flag=value`, one or two dashes, then the
//! action.

use std::path::PathBuf;

use nacre_protocol::id::{ContainerId, IdError};

/// Name of this program in messages.
pub(crate) const NAME: &str = "containerd-shim-nacre-v2";

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Start,
    Delete,
    Info,
    Version,
}

/// The command line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Args {
    pub(crate) action: Action,
    pub(crate) debug: bool,
    pub(crate) bundle: Option<PathBuf>,
    namespace: String,
    id: String,
}

/// A command line that cannot be meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ArgsError {
    #[error("flag {0} is not known")]
    UnknownFlag(String),
    #[error("flag -{0} needs a value")]
    NoValue(String),
    #[error("flag -{0} is true or false")]
    NotABool(String),
    #[error("an action is needed: start or delete")]
    NoAction,
    #[error("action {0:?} is not known: it is start or delete")]
    UnknownAction(String),
    #[error("flag -{0} is not an identifier")]
    Id(&'static str, #[source] IdError),
}

impl Args {
    /// Parses the arguments after the program's name.
    pub(crate) fn parse(args: impl Iterator<Item = String>) -> Result<Self, ArgsError> {
        let mut parsed = Self {
            action: Action::Start,
            debug: false,
            bundle: None,
            namespace: String::new(),
            id: String::new(),
        };
        let mut action = None;
        let mut args = args;
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix('-').map(|flag| flag.strip_prefix('-').unwrap_or(flag)) else {
                action.get_or_insert(arg);
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            match name {
                "debug" => parsed.debug = boolean(name, value)?,
                "v" if boolean(name, value.clone())? => action = Some("-v".to_owned()),
                "info" if boolean(name, value.clone())? => action = Some("-info".to_owned()),
                "v" | "info" => {}
                _ => {
                    let value = match value {
                        Some(value) => value,
                        None => args.next().ok_or_else(|| ArgsError::NoValue(name.to_owned()))?,
                    };
                    parsed.set(name, value)?;
                }
            }
        }
        parsed.action = match action.as_deref() {
            Some("start") => Action::Start,
            Some("delete") => Action::Delete,
            Some("-info") => Action::Info,
            Some("-v") => Action::Version,
            Some(other) => return Err(ArgsError::UnknownAction(other.to_owned())),
            None => return Err(ArgsError::NoAction),
        };
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), ArgsError> {
        match name {
            "namespace" => self.namespace = value,
            "id" => self.id = value,
            "bundle" => self.bundle = Some(PathBuf::from(value)),
            // The events' way is TTRPC_ADDRESS; a socket of the caller's choice is a Windows matter.
            "address" | "publish-binary" | "socket" | "debug-socket" => {}
            _ => return Err(ArgsError::UnknownFlag(format!("-{name}"))),
        }
        Ok(())
    }

    /// containerd's namespace.
    pub(crate) fn namespace(&self) -> Result<ContainerId, ArgsError> {
        self.namespace.parse().map_err(|error| ArgsError::Id("namespace", error))
    }

    /// The sandbox.
    pub(crate) fn id(&self) -> Result<ContainerId, ArgsError> {
        self.id.parse().map_err(|error| ArgsError::Id("id", error))
    }
}

fn boolean(name: &str, value: Option<String>) -> Result<bool, ArgsError> {
    match value.as_deref() {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(_) => Err(ArgsError::NotABool(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn command_line_of_containerd_is_understood() {
        let line = "-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd \
                    -id web -debug start";
        let args = parse(line).unwrap();
        assert_eq!((args.action, args.debug), (Action::Start, true));
        assert_eq!(args.namespace().unwrap().as_str(), "k8s.io");
        assert_eq!(args.id().unwrap().as_str(), "web");
    }

    #[test]
    fn delete_has_its_bundle() {
        let args = parse("-namespace=default --id web -bundle /run/b delete").unwrap();
        assert_eq!((args.action, args.bundle), (Action::Delete, Some(PathBuf::from("/run/b"))));
    }

    #[test]
    fn version_and_info_are_flags() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v=false -id x start").unwrap().action, Action::Start);
    }

    #[test]
    fn what_cannot_be_meant_is_an_error() {
        assert_eq!(parse("-id"), Err(ArgsError::NoValue("id".into())));
        assert_eq!(parse("-kernel /x start"), Err(ArgsError::UnknownFlag("-kernel".into())));
        assert_eq!(parse("-id x run"), Err(ArgsError::UnknownAction("run".into())));
        assert_eq!(parse("-id x"), Err(ArgsError::NoAction));
    }

    #[test]
    fn ids_that_are_paths_are_refused() {
        let args = parse("-namespace ../x -id a/b start").unwrap();
        assert!(args.namespace().is_err() && args.id().is_err());
    }
}
