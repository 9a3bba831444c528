//! The `process` object: of a container's init, and of an exec.

use oci_spec::runtime::{
    Capabilities, IOPriorityClass, LinuxCapabilities, LinuxIOPriority, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, PosixRlimit, PosixRlimitType, Process, Scheduler, User,
};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::{InvalidSpec, clean};
use crate::container::sys::task::SchedAttr;

const MAX_GROUPS: usize = 65536;
const MAX_USER_TEXT: usize = 256;

/// A process object that cannot become a process.
#[derive(Debug, thiserror::Error)]
pub enum InvalidProcess {
    /// It is not the JSON of an OCI process.
    #[error("process is not valid JSON of the OCI runtime specification")]
    Json(#[source] serde_json::Error),
    /// There is no program to run.
    #[error("process has no args")]
    NoArgs,
    /// A string of it has a NUL byte.
    #[error("process {0} has a NUL byte")]
    Nul(&'static str),
    /// An environment entry has no name.
    #[error("process environment entry {0:?} is not NAME=VALUE")]
    Env(String),
    /// The working directory is no absolute path.
    #[error("process working directory {0:?} is not a usable absolute path")]
    Cwd(String),
    /// Id 4294967295 means "no change" to the kernel (C11).
    #[error("process user or group id 4294967295 is not a valid id")]
    Id,
    /// Too many groups, or too long a user.
    #[error("process user has too many groups or too long a name")]
    User,
    /// A limit is named twice, or its soft value is above the hard one.
    #[error("process limit {0}: {1}")]
    Limit(String, &'static str),
    /// The score is not in -1000..=1000.
    #[error("process oomScoreAdj {0} is not in -1000..=1000")]
    OomScore(i32),
    /// An I/O priority that is none.
    #[error("process I/O priority {0} is not in 0..=7")]
    IoPriority(i64),
}

/// What the child becomes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessPlan {
    /// Not empty.
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    /// Cleaned path.
    pub(crate) cwd: String,
    pub(crate) user: UserPlan,
    pub(crate) additional_gids: Vec<u32>,
    pub(crate) umask: Option<u32>,
    pub(crate) capabilities: CapabilityPlan,
    pub(crate) limits: Vec<LimitPlan>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    /// Argument of ioprio_set(2).
    pub(crate) io_priority: Option<u16>,
    pub(crate) scheduler: Option<SchedAttr>,
}

/// Who the process runs as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum UserPlan {
    /// Numbers, taken as they are.
    Ids { uid: u32, gid: u32 },
    /// `USER[:GROUP]` as in an image's configuration, looked up in the container's own files.
    Text(String),
}

/// The five sets, as bits.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CapabilityPlan {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl ProcessPlan {
    /// Whether it is root with CAP_SYS_ADMIN and keeps that: without a user namespace, the guest's root by another name.
    pub(crate) fn is_guests_root(&self) -> bool {
        let CapabilityPlan { bounding, effective, permitted, .. } = self.capabilities;
        let admin = CapabilitySet::SYS_ADMIN.bits();
        matches!(self.user, UserPlan::Ids { uid: 0, .. }) && bounding & effective & permitted & admin != 0
    }
}

impl CapabilityPlan {
    /// Whether a process can come to have one of these: by itself, or by a program with file capabilities.
    pub(crate) fn any_of(&self, capabilities: CapabilitySet) -> bool {
        let all = self.bounding | self.effective | self.permitted | self.inheritable | self.ambient;
        all & capabilities.bits() != 0
    }
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LimitPlan {
    /// RLIMIT_*.
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

impl ProcessPlan {
    /// Parses and checks a process object.
    ///
    /// # Errors
    /// [`InvalidProcess`].
    pub(crate) fn parse(json: &[u8]) -> Result<Self, InvalidProcess> {
        let process: Process = serde_json::from_slice(json).map_err(InvalidProcess::Json)?;
        Self::from_oci(&process)
    }

    pub(super) fn from_oci(process: &Process) -> Result<Self, InvalidProcess> {
        let args = process.args().clone().unwrap_or_default();
        if args.first().is_none_or(String::is_empty) {
            return Err(InvalidProcess::NoArgs);
        }
        let env = process.env().clone().unwrap_or_default();
        for (what, strings) in [("argument", &args), ("environment", &env)] {
            if strings.iter().any(|text| text.contains('\0')) {
                return Err(InvalidProcess::Nul(what));
            }
        }
        if let Some(bad) = env.iter().find(|entry| entry.find('=').is_none_or(|at| at == 0)) {
            return Err(InvalidProcess::Env(bad.clone()));
        }
        let cwd = clean("working directory", process.cwd()).map_err(|error| match error {
            InvalidSpec::Path { path, .. } => InvalidProcess::Cwd(path),
            _ => InvalidProcess::Cwd(String::new()),
        })?;
        let user = process.user();
        let additional_gids = user.additional_gids().clone().unwrap_or_default();
        if additional_gids.len() > MAX_GROUPS {
            return Err(InvalidProcess::User);
        }
        if additional_gids.contains(&u32::MAX) {
            return Err(InvalidProcess::Id);
        }
        Ok(Self {
            args,
            env,
            cwd,
            user: who(user)?,
            additional_gids,
            umask: user.umask().map(|umask| umask & 0o777),
            capabilities: capabilities(process.capabilities().as_ref()),
            limits: limits(process.rlimits().as_deref().unwrap_or_default())?,
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: match process.oom_score_adj() {
                Some(score) if !(-1000..=1000).contains(&score) => {
                    return Err(InvalidProcess::OomScore(score));
                }
                score => score,
            },
            io_priority: process.io_priority().as_ref().map(io_priority).transpose()?,
            scheduler: process.scheduler().as_ref().map(scheduler),
        })
    }
}

fn who(user: &User) -> Result<UserPlan, InvalidProcess> {
    match user.username().as_deref().filter(|name| !name.is_empty()) {
        Some(text) if text.len() > MAX_USER_TEXT => Err(InvalidProcess::User),
        Some(text) if text.contains('\0') => Err(InvalidProcess::Nul("user")),
        Some(text) => Ok(UserPlan::Text(text.to_owned())),
        None if user.uid() == u32::MAX || user.gid() == u32::MAX => Err(InvalidProcess::Id),
        None => Ok(UserPlan::Ids { uid: user.uid(), gid: user.gid() }),
    }
}

fn capabilities(sets: Option<&LinuxCapabilities>) -> CapabilityPlan {
    let Some(sets) = sets else { return CapabilityPlan::default() };
    let bits = |set: &Option<Capabilities>| {
        let set = set.iter().flatten();
        // Both crates spell a capability as capabilities(7) does, without CAP_.
        set.filter_map(|cap| CapabilitySet::from_name(&cap.to_string())).fold(0, |all, cap| all | cap.bits())
    };
    CapabilityPlan {
        bounding: bits(sets.bounding()),
        effective: bits(sets.effective()),
        permitted: bits(sets.permitted()),
        inheritable: bits(sets.inheritable()),
        ambient: bits(sets.ambient()),
    }
}

fn limits(limits: &[PosixRlimit]) -> Result<Vec<LimitPlan>, InvalidProcess> {
    let mut all: Vec<LimitPlan> = Vec::with_capacity(limits.len());
    for limit in limits {
        let bad = |problem| InvalidProcess::Limit(limit.typ().to_string(), problem);
        let resource = resource(limit.typ());
        if all.iter().any(|other| other.resource == resource) {
            return Err(bad("is named twice"));
        }
        if limit.soft() > limit.hard() {
            return Err(bad("the soft value is above the hard one"));
        }
        all.push(LimitPlan { resource, soft: limit.soft(), hard: limit.hard() });
    }
    Ok(all)
}

fn resource(kind: PosixRlimitType) -> u32 {
    match kind {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    }
}

/// IOPRIO_PRIO_VALUE of <linux/ioprio.h>.
fn io_priority(priority: &LinuxIOPriority) -> Result<u16, InvalidProcess> {
    let class: u16 = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match u16::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok((class << 13) | level),
        _ => Err(InvalidProcess::IoPriority(priority.priority())),
    }
}

fn scheduler(scheduler: &Scheduler) -> SchedAttr {
    let mut attr = SchedAttr {
        policy: match scheduler.policy() {
            LinuxSchedulerPolicy::SchedOther => 0,
            LinuxSchedulerPolicy::SchedFifo => 1,
            LinuxSchedulerPolicy::SchedRr => 2,
            LinuxSchedulerPolicy::SchedBatch => 3,
            LinuxSchedulerPolicy::SchedIso => 4,
            LinuxSchedulerPolicy::SchedIdle => 5,
            LinuxSchedulerPolicy::SchedDeadline => 6,
        },
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).unsigned_abs(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..SchedAttr::default()
    };
    for flag in scheduler.flags().iter().flatten() {
        attr.flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => 0x01,
            LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
            LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
            LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
        };
    }
    attr
}
