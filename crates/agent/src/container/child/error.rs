//! Why a step of the child failed.

use rustix::io::Errno;

use crate::container::orders::FailureKind;
use crate::container::passwd::UserError;
use crate::container::start::ExecError;

/// A step that failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// A system call.
    #[error("{0}")]
    Call(&'static str, #[source] Errno),
    /// A system call on a path or name.
    #[error("{action} {path}")]
    Path { action: &'static str, path: String, source: Errno },
    /// A symbolic link where none may be (C04, C06).
    #[error("{0} is or leads through a symbolic link, which is refused there")]
    Symlink(String),
    /// Something of the image where something else must be.
    #[error("{path} is not {expected}")]
    Unexpected { path: String, expected: &'static str },
    /// A mount point that a link has led into procfs or sysfs.
    #[error("{0} is inside procfs or sysfs, where mounts are refused")]
    InsideProc(String),
    /// The working directory is not below the root (C01).
    #[error("working directory {0} is outside the container")]
    CwdOutside(String),
    /// A terminal without a devpts.
    #[error("a terminal needs a devpts mount on /dev/pts")]
    NoDevpts,
    /// The container is over.
    #[error("the container's init has ended")]
    InitEnded,
    /// The user.
    #[error("user")]
    User(#[from] UserError),
    /// The program.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// The agent's messages.
    #[error("orders: {0}")]
    Orders(&'static str),
}

impl StepError {
    pub(super) fn path(action: &'static str, path: &str) -> impl FnOnce(Errno) -> Self {
        let path = path.to_owned();
        move |source| Self::Path { action, path, source }
    }

    pub(super) fn kind(self) -> FailureKind {
        match self {
            Self::Exec(error) => FailureKind::Exec(error),
            Self::Symlink(_) | Self::Unexpected { .. } | Self::InsideProc(_) => FailureKind::Invalid,
            Self::CwdOutside(_) | Self::NoDevpts | Self::InitEnded | Self::User(_) => FailureKind::Invalid,
            Self::Path { source: Errno::INVAL | Errno::NOENT | Errno::NODEV, .. } => FailureKind::Invalid,
            Self::Call(..) | Self::Path { .. } | Self::Orders(_) => FailureKind::Internal,
        }
    }

    /// The whole chain of causes.
    pub(super) fn message(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}
