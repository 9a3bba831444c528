//! A sandbox without a container of its own: the VM of a pod, as containerd's Sandbox API starts and stops it.

use std::path::Path;
use std::time::SystemTime;

use tracing::{info, warn};

use super::exit::watch_events;
use super::network::watch_network;
use super::{Core, ExitInfo, First, Reply, Request, answer};
use crate::agent::StatsReply;
use crate::error::SandboxError;
use crate::machine;
use crate::plan::HostLimits;
use crate::plan::pod::{self, PodRequest};

/// What is known of a pod's sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStatus {
    /// PID of the VMM, also after its end.
    pub pid: u32,
    /// When it was started.
    pub created_at: SystemTime,
    /// How it ended.
    pub exit: Option<ExitInfo>,
}

/// The task's own view of it.
pub(super) struct Pod {
    pub(super) pid: u32,
    pub(super) created_at: SystemTime,
    pub(super) exit: Option<ExitInfo>,
    waiters: Vec<Reply<ExitInfo>>,
}

impl Core {
    /// Boots the VM that containers may join; the VMM's PID.
    pub(super) async fn start_pod(&mut self, request: &PodRequest) -> Result<u32, SandboxError> {
        if self.pod.is_some() || self.first.is_some() {
            return Err(SandboxError::HasContainer(self.settings.id.to_string()));
        }
        let settings = &self.settings;
        let plan = pod::plan(&settings.id, request, &settings.config.vm, HostLimits::of_this_host())?;
        let machine = machine::boot(settings, &plan).await?;
        if let Some(cgroup) = machine.cgroup() {
            cgroup.limit_cpu(plan.cgroup.cpu_max)?;
        }
        self.first = Some(First {
            id: settings.id.to_string(),
            is_pod: true,
            guest_pid: None,
            network: plan.network.path().map(Path::to_owned),
            memory_mib: plan.memory_mib,
            own_processes: false,
            joined: 0,
            oom_score_adj: None,
            sysctls: request.sysctls.clone(),
            users: request.users.clone(),
        });
        watch_events(&machine, self.sender.clone());
        let (vm, sender) = (machine.vm().killer(), self.sender.clone());
        tokio::spawn(async move {
            let reason = vm.ended().await.to_string();
            if let Some(sender) = sender.upgrade() {
                let _ = sender.send(Request::VmEnded(reason)).await;
            }
        });
        let pid = machine.vm().pid();
        watch_network(self.machine.insert(machine), self.sender.clone());
        self.pod = Some(Pod { pid, created_at: SystemTime::now(), exit: None, waiters: Vec::new() });
        info!(sandbox = %self.settings.id, pid, "pod started");
        Ok(pid)
    }

    /// Ends the VM, and what runs in it; one that has ended is left alone.
    pub(super) async fn stop_pod(&mut self) -> Result<(), SandboxError> {
        self.take_down().await;
        self.end_pod(ExitInfo::of_vm(None));
        Ok(())
    }

    /// Answers at once when the VM has ended, else when it does.
    pub(super) fn wait_pod(&mut self, reply: Reply<ExitInfo>) {
        let Some(pod) = &mut self.pod else {
            return answer(reply, Err(super::no_container(self.settings.id.as_str())));
        };
        match &pod.exit {
            Some(exit) => answer(reply, Ok(exit.clone())),
            None => {
                pod.waiters.retain(|waiter| !waiter.is_closed());
                pod.waiters.push(reply);
            }
        }
    }

    /// The VM ended, by itself or because it was taken down.
    pub(super) fn vm_ended(&mut self, reason: String) {
        if self.pod.as_ref().is_some_and(|pod| pod.exit.is_none()) {
            warn!(sandbox = %self.settings.id, reason, "the VM of the pod ended");
            self.end_pod(ExitInfo::of_vm(Some(reason)));
            self.begin_take_down();
        }
    }

    fn end_pod(&mut self, exit: ExitInfo) {
        let Some(pod) = self.pod.as_mut().filter(|pod| pod.exit.is_none()) else { return };
        for waiter in pod.waiters.drain(..) {
            answer(waiter, Ok(exit.clone()));
        }
        pod.exit = Some(exit);
        self.first = None;
    }

    /// The sum of its containers' figures.
    pub(super) async fn pod_stats(&mut self) -> Result<StatsReply, SandboxError> {
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        let mut sum = StatsReply::default();
        for id in ids {
            // One that has just ended has none.
            if let Ok(stats) = self.stats(&id).await {
                add(&mut sum, &stats);
            }
        }
        Ok(sum)
    }
}

/// Adds what can be added: limits and peaks are each container's own.
fn add(sum: &mut StatsReply, stats: &StatsReply) {
    let pairs = [
        (&mut sum.cpu_usage_usec, stats.cpu_usage_usec),
        (&mut sum.cpu_user_usec, stats.cpu_user_usec),
        (&mut sum.cpu_system_usec, stats.cpu_system_usec),
        (&mut sum.cpu_nr_periods, stats.cpu_nr_periods),
        (&mut sum.cpu_nr_throttled, stats.cpu_nr_throttled),
        (&mut sum.cpu_throttled_usec, stats.cpu_throttled_usec),
        (&mut sum.memory_current, stats.memory_current),
        (&mut sum.memory_swap_current, stats.memory_swap_current),
        (&mut sum.pids_current, stats.pids_current),
        (&mut sum.memory_oom_kill, stats.memory_oom_kill),
    ];
    for (total, value) in pairs {
        // A guest may say anything.
        *total = total.saturating_add(value);
    }
}
