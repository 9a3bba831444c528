//! A container that joins a pod, and one that leaves it.

use std::time::Duration;

use tracing::warn;

use super::create::{CREATING, new_container};
use super::{Core, CreateRequest, First, Place, Process, ProcessId, exit};
use crate::agent::{AgentError, ProcessName, Reach};
use crate::error::SandboxError;
use crate::hooks;
use crate::machine::{Addition, Machine};
use crate::plan::Plan;
use crate::plan::pod::{Joined, Role};
use crate::sandbox::ExitInfo;
use crate::sandbox::requests::SIGKILL;
use crate::state::{Move, State};
use crate::stdio::{self, LogSource};

/// For a process that was never started, and was killed, to be gone from the guest.
const END_TIMEOUT: Duration = Duration::from_secs(10);

impl Core {
    /// Makes a further container of the pod, up to its init's exec.
    pub(super) async fn join(&mut self, request: CreateRequest) -> Result<u32, SandboxError> {
        if self.containers.contains_key(&request.id) {
            return Err(SandboxError::HasContainer(request.id));
        }
        let not_running = || SandboxError::NotRunning(request.id.clone());
        let first = self.first.as_mut().ok_or_else(not_running)?;
        first.joined += 1;
        let prefix = format!("c{}-", first.joined);
        let (plan, pid) = self.plan_joining(&request, &prefix)?;
        let (own_processes, oom_score_adj) = (plan.own_processes, plan.oom_score_adj);
        let source = LogSource { namespace: self.settings.namespace.as_str(), container: &request.id };
        let opened = stdio::open(&request.stdio, source).await?;

        exit::reserve_exit_record(&request.bundle);
        let machine = self.machine.as_mut().ok_or_else(not_running)?;
        let addition = machine.add(&plan).await?;
        let names = opened.for_agent(plan.console_size);
        let streams = opened.connect(&machine.dialer());
        let hooks = plan.hooks.clone();
        let wanted = new_container(plan, addition.layers());
        let created = machine.agent().create_container(&request.id, wanted, names).await;
        let mut created = machine.explained(created).await.map(drop);
        if created.is_ok() {
            let state = hooks.state(&request.id, CREATING, pid, &request.bundle);
            created = hooks::run(&hooks.create, &state).await.map_err(SandboxError::from);
        }
        if let Err(error) = created {
            let name = ProcessName { container: request.id.clone(), exec: String::new() };
            // One that was only late is there by now, with the root that is to be taken away.
            if !matches!(error, SandboxError::Agent(AgentError::Refused { .. }))
                && forget(machine, &name, State::Created).await.is_err()
            {
                machine.vm().kill();
            }
            take_back(machine, addition).await;
            return Err(error);
        }
        if let Some(first) = &mut self.first {
            first.own_processes |= own_processes;
            // A pause container's is that of the node's own services, which the OOM killer shall spare; the VM is as dear as the
            // dearest of its containers.
            if let Some(value) = oom_score_adj {
                let least = first.oom_score_adj.map_or(value, |least| least.min(value));
                first.oom_score_adj = Some(least);
                machine.set_oom_score_adj(least);
            }
        }
        let init = Process::new(request.stdio.clone(), streams);
        self.keep(request, init, Place::Joined(Some(addition)), (pid, hooks)).await
    }

    fn plan_joining(&self, request: &CreateRequest, prefix: &str) -> Result<(Plan, u32), SandboxError> {
        let not_running = || SandboxError::NotRunning(request.id.clone());
        let First { id, guest_pid, network, own_processes, sysctls, users, .. } =
            self.first.as_ref().ok_or_else(not_running)?;
        let host_pid = self.machine.as_ref().ok_or_else(not_running)?.vm().pid();
        let network = network.as_deref();
        let (guest_pid, own_processes) = (*guest_pid, *own_processes);
        let users = users.as_ref();
        let joined =
            Joined { share_prefix: prefix, host_pid, guest_pid, network, own_processes, sysctls, users };
        let plan = self.plan(request, Some(joined))?;
        match &plan.role {
            Role::Member { sandbox } if sandbox == id => Ok((plan, host_pid)),
            Role::Member { sandbox } => Err(SandboxError::OtherPod {
                container: request.id.clone(),
                sandbox: crate::text::harmless(sandbox, 128),
            }),
            Role::Alone | Role::Sandbox => Err(SandboxError::HasContainer(id.clone())),
        }
    }

    /// Forgets a container that had joined, in the guest and here.
    pub(super) async fn leave_pod(&mut self, id: &ProcessId) -> Result<(u32, ExitInfo), SandboxError> {
        let container = self.container(&id.container)?;
        container.init.state.after(Move::Delete)?;
        let state = container.init.state;
        if let Some(machine) = &self.machine {
            match forget(machine, &id.into(), state).await {
                Ok(()) => {}
                // A process of it still waits for its storage, say: the caller may try again.
                Err(error @ AgentError::Refused { .. }) if !is_missing(&error) => return Err(error.into()),
                Err(AgentError::Refused { .. }) => {}
                Err(error) => {
                    // What it has mounted cannot be taken from under it: a guest that does not let go has no VM.
                    warn!(
                        container = id.container,
                        error = &error as &dyn std::error::Error,
                        "killing the VM: its guest does not forget a container"
                    );
                    machine.vm().kill();
                }
            }
        }
        let addition = match &mut self.container(&id.container)?.place {
            Place::Joined(addition) => addition.take(),
            Place::First(_) => None,
        };
        if let (Some(machine), Some(addition)) = (&mut self.machine, addition) {
            take_back(machine, addition).await;
        }
        self.strike_out(id).await
    }
}

/// Whether the guest says that there is no such container.
fn is_missing(error: &AgentError) -> bool {
    matches!(error, AgentError::Refused { code: ttrpc::Code::NOT_FOUND, .. })
}

/// Lets the guest forget a container; one that never ran is ended first.
async fn forget(machine: &Machine, name: &ProcessName, state: State) -> Result<(), AgentError> {
    let agent = machine.agent();
    if state != State::Stopped {
        match agent.signal(name, SIGKILL, Reach::Everything).await {
            // It may have ended by itself.
            Err(error) if !is_missing(&error) => return Err(error),
            _ => {}
        }
        let ended = tokio::time::timeout(END_TIMEOUT, agent.wait(name)).await;
        ended.map_err(|_| AgentError::Unresponsive { method: "Wait", timeout: END_TIMEOUT })??;
    }
    agent.delete(name).await
}

/// Shares that cannot be taken back stay until the VM ends, and harm nobody.
async fn take_back(machine: &mut Machine, addition: Addition) {
    if let Err(error) = machine.remove(addition).await {
        warn!(error = &error as &dyn std::error::Error, "shares of a container stay until the VM ends");
    }
}
