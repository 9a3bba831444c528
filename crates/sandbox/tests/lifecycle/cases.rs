//! The tests.

use std::io::Read;
use std::time::{Duration, Instant};

use nacre_protocol::task::{ExitRecord, Leave, LogLine, OnExit, Phases};
use nacre_sandbox::agent::{AgentError, Reach};
use nacre_sandbox::error::SandboxError;
use nacre_sandbox::sandbox::{Force, SandboxEvent};
use nacre_sandbox::state::State;
use nacre_sandbox::stdio::StdioRequest;
use nacre_sandbox::vm::VmError;

use crate::fixture::{Case, Host, exec, init};
use crate::pods::*;

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        /// Every test by its name.
        pub(crate) const ALL: &[(&str, Case)] = &[$((stringify!($name), |host| Box::pin($name(host)))),*];
    };
}

cases![
    container_lives_from_create_to_delete,
    output_is_whole_before_the_exit_is_told,
    stdin_reaches_the_process_and_ends,
    output_that_a_grandchild_holds_does_not_hold_the_exit,
    signal_ends_a_process_with_its_number,
    exec_runs_beside_init,
    command_that_is_missing_is_an_error_and_can_be_deleted,
    created_container_can_be_deleted_without_a_start,
    second_container_is_refused,
    paused_container_tells_so,
    detached_container_ends_its_sandbox_and_leaves_its_record,
    bundle_goes_with_a_container_that_is_to_be_removed,
    container_that_its_caller_leaves_writes_a_log_and_ends_its_sandbox,
    container_that_has_ended_when_it_is_left_ends_its_sandbox,
    exec_that_its_caller_leaves_is_forgotten_at_its_end,
    shutdown_of_an_empty_sandbox_ends_it_and_of_a_full_one_not,
    dead_vmm_ends_every_process_with_137_and_says_why,
    guest_kernel_panic_at_boot_is_told_with_its_reason,
    guest_kernel_panic_while_running_is_told_with_its_reason,
    vmm_that_refuses_is_told_in_its_words,
    guest_that_never_gets_ready_is_given_up,
    missing_kernel_is_an_error_that_leaves_nothing,
    h12_giant_reply_is_refused,
    h12_vmm_that_talks_nonsense_is_killed,
    h12_text_of_the_agent_is_cut_and_harmless,
    h12_impossible_exit_status_costs_the_guest_its_vm,
    h12_event_of_a_foreign_container_costs_the_guest_its_vm,
    h12_guest_that_ignores_sigkill_loses_its_vm,
    h12_guest_that_only_pretends_to_kill_loses_its_vm,
    oom_events_of_the_container_are_passed_on,
    oom_kill_is_told_before_the_exit_where_the_guest_tells_of_it_late,
    sigkill_does_not_cost_the_vm_where_only_the_output_is_read_slowly,
    h12_output_without_an_end_does_not_keep_a_killed_container,
    layers_of_a_container_that_joins_are_a_disk_that_leaves_with_it,
    disk_that_the_guest_does_not_take_is_taken_back,
    containers_of_a_pod_come_and_go_in_one_vm,
    container_that_joins_and_is_never_started_can_be_deleted,
    end_of_a_pods_sandbox_ends_its_containers,
    container_of_another_pod_is_refused,
    container_that_cannot_join_leaves_the_pod_as_it_was,
    pod_without_a_container_of_its_own_lives_until_it_is_stopped,
    death_of_a_pods_vm_is_told_to_who_waits,
];

async fn container_lives_from_create_to_delete(mut host: Host) -> Host {
    let pid = host.create(&["exit", "3"]).await.unwrap();
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Created);
    host.sandbox.start(init()).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 3);
    let (deleted_pid, exit) = host.sandbox.delete(init()).await.unwrap();
    assert_eq!((deleted_pid, exit.status), (pid, 3));
    assert!(matches!(host.next_event().await, SandboxEvent::Created { .. }));
    assert!(matches!(host.next_event().await, SandboxEvent::Started { .. }));
    assert!(matches!(host.next_event().await, SandboxEvent::Exited { .. }));
    assert!(matches!(host.next_event().await, SandboxEvent::Deleted { .. }));
    let phases = std::fs::read(host.path("bundle/phases.json")).unwrap();
    let phases: Phases = serde_json::from_slice(&phases).unwrap();
    assert!(phases.plan > 0.0 && phases.vm_start > 0.0 && phases.exit > 0.0, "{phases:?}");
    host
}

async fn output_is_whole_before_the_exit_is_told(mut host: Host) -> Host {
    let (stdout, reader) = host.output("out");
    let stdio = StdioRequest { stdout, ..StdioRequest::default() };
    host.create_with(&["print", "4096"], stdio, OnExit::Wait).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.wait(init()).await.unwrap();
    host.sandbox.delete(init()).await.unwrap();
    let output = reader.join().unwrap();
    assert_eq!(output.len(), 4096 * 1024);
    assert!(output.chunks(16).all(|chunk| chunk == b"0123456789abcdef"));
    host
}

async fn stdin_reaches_the_process_and_ends(mut host: Host) -> Host {
    let (stdout, reader) = host.output("out");
    let stdin = host.fifo("in");
    let stdio = StdioRequest { stdin: stdin.clone(), stdout, ..StdioRequest::default() };
    host.create_with(&["cat"], stdio, OnExit::Wait).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    std::fs::write(&stdin, "to the guest and back").unwrap();
    host.sandbox.close_stdin(init()).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 0);
    host.sandbox.delete(init()).await.unwrap();
    assert_eq!(reader.join().unwrap(), b"to the guest and back");
    host
}

async fn output_that_a_grandchild_holds_does_not_hold_the_exit(mut host: Host) -> Host {
    let (stdout, _reader) = host.output("out");
    let stdio = StdioRequest { stdout, ..StdioRequest::default() };
    host.create_with(&["hold-output"], stdio, OnExit::Wait).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 0);
    host.sandbox.delete(init()).await.unwrap();
    host
}

async fn signal_ends_a_process_with_its_number(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.signal(init(), 15, Reach::Process).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 143);
    let again = host.sandbox.signal(init(), 15, Reach::Process).await;
    assert!(matches!(again, Err(SandboxError::Finished)));
    host
}

async fn exec_runs_beside_init(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    let (stdout, reader) = host.output("out");
    let stdio = StdioRequest { stdout, ..StdioRequest::default() };
    let process = br#"{"args": ["print", "1"], "cwd": "/"}"#.to_vec();
    host.sandbox.exec(exec("probe"), process.clone(), stdio).await.unwrap();
    let twice = host.sandbox.exec(exec("probe"), process, StdioRequest::default()).await;
    assert!(matches!(twice, Err(SandboxError::HasExec(_))));
    host.sandbox.start(exec("probe")).await.unwrap();
    assert_eq!(host.sandbox.wait(exec("probe")).await.unwrap().status, 0);
    host.sandbox.delete(exec("probe")).await.unwrap();
    assert_eq!(reader.join().unwrap().len(), 1024);
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Running);
    host
}

async fn command_that_is_missing_is_an_error_and_can_be_deleted(mut host: Host) -> Host {
    host.create(&["missing"]).await.unwrap();
    let error = host.sandbox.start(init()).await.unwrap_err();
    assert_eq!(error.to_string(), r#"exec: "missing": not found"#);
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 127);
    assert_eq!(host.sandbox.delete(init()).await.unwrap().1.status, 127);
    host
}

async fn created_container_can_be_deleted_without_a_start(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    assert_eq!(host.sandbox.delete(init()).await.unwrap().1.status, 137);
    assert!(matches!(host.sandbox.status(&init()), Err(SandboxError::NoContainer(_))));
    host
}

async fn second_container_is_refused(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    assert!(matches!(host.create(&["sleep"]).await, Err(SandboxError::HasContainer(_))));
    host
}

async fn paused_container_tells_so(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    assert!(matches!(host.sandbox.pause("web".into()).await, Err(SandboxError::State(_))));
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.pause("web".into()).await.unwrap();
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Paused);
    host.sandbox.resume("web".into()).await.unwrap();
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Running);
    assert_eq!(host.sandbox.stats("web".into()).await.unwrap().cpu_usage_usec, 7);
    host
}

async fn detached_container_ends_its_sandbox_and_leaves_its_record(mut host: Host) -> Host {
    let log = format!("json-file://{}", host.path("log").display());
    let stdio = StdioRequest { stdout: log, ..StdioRequest::default() };
    host.create_with(&["print", "3"], stdio, OnExit::Shutdown).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    while host.next_event().await != SandboxEvent::Finished {}
    let record = std::fs::read(host.path("bundle/exit.json")).unwrap();
    let record: ExitRecord = serde_json::from_slice(&record).unwrap();
    assert_eq!((record.exit_status, record.failure), (0, None));
    assert!(std::fs::metadata(host.path("log")).unwrap().len() > 3 * 1024);
    host
}

async fn bundle_goes_with_a_container_that_is_to_be_removed(mut host: Host) -> Host {
    host.create_with(&["exit", "0"], StdioRequest::default(), OnExit::Remove).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    while host.next_event().await != SandboxEvent::Finished {}
    assert!(!host.path("bundle").exists());
    host
}

async fn container_that_its_caller_leaves_writes_a_log_and_ends_its_sandbox(mut host: Host) -> Host {
    let (stdin, stdout) = (host.fifo("in"), host.fifo("out"));
    let stdio = StdioRequest { stdin: stdin.clone(), stdout: stdout.clone(), ..StdioRequest::default() };
    host.create_with(&["cat"], stdio, OnExit::Wait).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    std::fs::write(&stdin, "before").unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut fifo = std::fs::File::open(stdout).unwrap();
        let mut bytes = [0; 6];
        fifo.read_exact(&mut bytes).unwrap();
        (fifo, bytes)
    });
    let (mut fifo, before) = reading.await.unwrap();
    let output = format!("json-file://{}", host.path("log").display());
    let leave = Leave { output, on_exit: OnExit::Shutdown, ..Leave::default() };
    host.sandbox.leave("web".into(), leave).await.unwrap();
    let rest = tokio::task::spawn_blocking(move || {
        let mut rest = Vec::new();
        fifo.read_to_end(&mut rest).unwrap();
        rest
    });
    assert_eq!((&before, rest.await.unwrap()), (b"before", Vec::new()));
    std::fs::write(&stdin, "after").unwrap();
    host.sandbox.close_stdin(init()).await.unwrap();
    while host.next_event().await != SandboxEvent::Finished {}
    let log: LogLine = serde_json::from_slice(&std::fs::read(host.path("log")).unwrap()).unwrap();
    assert_eq!((log.log.as_str(), log.stream.as_str()), ("after", "stdout"));
    host
}

async fn container_that_has_ended_when_it_is_left_ends_its_sandbox(mut host: Host) -> Host {
    host.create(&["exit", "0"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.wait(init()).await.unwrap();
    let leave = Leave { on_exit: OnExit::Remove, ..Leave::default() };
    host.sandbox.leave("web".into(), leave).await.unwrap();
    while host.next_event().await != SandboxEvent::Finished {}
    assert!(!host.path("bundle").exists());
    host
}

async fn exec_that_its_caller_leaves_is_forgotten_at_its_end(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    let process = br#"{"args": ["sleep"], "cwd": "/"}"#.to_vec();
    let leave = Leave { exec_id: "probe".into(), ..Leave::default() };
    for ended in [false, true] {
        host.sandbox.exec(exec("probe"), process.clone(), StdioRequest::default()).await.unwrap();
        host.sandbox.start(exec("probe")).await.unwrap();
        if !ended {
            host.sandbox.leave("web".into(), leave.clone()).await.unwrap();
        }
        host.sandbox.signal(exec("probe"), 15, Reach::Process).await.unwrap();
        // Not by a wait, which an exec that is forgotten no longer has.
        while !matches!(host.next_event().await, SandboxEvent::Exited { .. }) {}
        if ended {
            host.sandbox.leave("web".into(), leave.clone()).await.unwrap();
        }
        let again = host.sandbox.leave("web".into(), leave.clone()).await;
        assert!(matches!(again, Err(SandboxError::NoExec(_))), "{ended}");
    }
    assert_eq!(host.sandbox.status(&init()).unwrap().state, State::Running);
    host
}

async fn shutdown_of_an_empty_sandbox_ends_it_and_of_a_full_one_not(mut host: Host) -> Host {
    host.create(&["sleep"]).await.unwrap();
    assert!(!host.sandbox.shutdown(Force::Empty).await.unwrap());
    host.sandbox.delete(init()).await.unwrap();
    assert!(host.sandbox.shutdown(Force::Empty).await.unwrap());
    host
}

async fn dead_vmm_ends_every_process_with_137_and_says_why(mut host: Host) -> Host {
    let pid = host.create(&["sleep"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    let process = br#"{"args": ["sleep"], "cwd": "/"}"#.to_vec();
    host.sandbox.exec(exec("probe"), process, StdioRequest::default()).await.unwrap();
    host.sandbox.start(exec("probe")).await.unwrap();
    kill(pid);
    let (of_init, of_exec) = tokio::join!(host.sandbox.wait(init()), host.sandbox.wait(exec("probe")));
    let of_init = of_init.unwrap();
    assert_eq!((of_init.status, of_exec.unwrap().status), (137, 137));
    assert_eq!(of_init.failure.as_deref(), Some("the VMM died (signal 9)"));
    host.sandbox.delete(init()).await.unwrap();
    host
}

async fn guest_kernel_panic_at_boot_is_told_with_its_reason(mut host: Host) -> Host {
    host.kernel("panic");
    let error = host.create(&["exit", "0"]).await.unwrap_err().to_string();
    assert!(error.contains("the guest's kernel panicked: no ?[31minit"), "{error}");
    host
}

async fn guest_kernel_panic_while_running_is_told_with_its_reason(mut host: Host) -> Host {
    host.create(&["panic"]).await.unwrap();
    // The guest may be gone before it can answer.
    let _ = host.sandbox.start(init()).await;
    let exit = host.sandbox.wait(init()).await.unwrap();
    assert_eq!(exit.status, 137);
    let failure = exit.failure.unwrap();
    assert!(failure.contains("the guest's kernel panicked: Fatal exception"), "{failure}");
    host
}

async fn vmm_that_refuses_is_told_in_its_words(mut host: Host) -> Host {
    host.kernel("refuse");
    let error = host.create(&["exit", "0"]).await.unwrap_err();
    assert_eq!(error.to_string(), "the VMM refused to start: KVM says ?[31mno; see `nacre check`");
    host
}

async fn guest_that_never_gets_ready_is_given_up(host: Host) -> Host {
    let mut host = host.impatient();
    host.kernel("mute");
    let error = host.create(&["exit", "0"]).await.unwrap_err();
    assert!(matches!(error, SandboxError::BootTimeout { .. }), "{error}");
    host
}

async fn missing_kernel_is_an_error_that_leaves_nothing(mut host: Host) -> Host {
    std::fs::remove_file(host.path("assets/vmlinux")).unwrap();
    let error = host.create(&["exit", "0"]).await.unwrap_err();
    assert!(matches!(error, SandboxError::Asset(_)), "{error}");
    host
}

async fn h12_giant_reply_is_refused(mut host: Host) -> Host {
    host.kernel("giant");
    let error = host.create(&["exit", "0"]).await.unwrap_err();
    assert!(matches!(error, SandboxError::Agent(_)), "{error}");
    host
}

async fn h12_vmm_that_talks_nonsense_is_killed(mut host: Host) -> Host {
    host.kernel("babble");
    let error = host.create(&["exit", "0"]).await.unwrap_err();
    assert!(matches!(error, SandboxError::Vm(VmError::Ended(_))), "{error}");
    host
}

async fn h12_text_of_the_agent_is_cut_and_harmless(mut host: Host) -> Host {
    let error = host.create(&["refuse"]).await.unwrap_err();
    let SandboxError::Agent(AgentError::Refused { message, .. }) = error else { panic!("{error}") };
    assert!(message.starts_with("?[2J?[31mroot:?xxx") && message.ends_with(" [cut]"), "{message}");
    assert!(message.len() < 1100);
    host
}

async fn h12_impossible_exit_status_costs_the_guest_its_vm(mut host: Host) -> Host {
    host.create(&["bad-status"]).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 137);
    host
}

async fn h12_event_of_a_foreign_container_costs_the_guest_its_vm(mut host: Host) -> Host {
    host.kernel("foreign-oom");
    host.create(&["sleep"]).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 137);
    host
}

async fn h12_guest_that_ignores_sigkill_loses_its_vm(host: Host) -> Host {
    let mut host = host.impatient();
    host.create(&["deaf"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.signal(init(), 9, Reach::Process).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 137);
    host
}

async fn h12_guest_that_only_pretends_to_kill_loses_its_vm(host: Host) -> Host {
    let mut host = host.impatient();
    host.create(&["undying"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.signal(init(), 9, Reach::Process).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 137);
    host
}

async fn oom_events_of_the_container_are_passed_on(mut host: Host) -> Host {
    host.kernel("oom");
    host.create(&["sleep"]).await.unwrap();
    let begin = Instant::now();
    let mut seen = 0;
    while seen < 2 {
        seen += usize::from(matches!(host.next_event().await, SandboxEvent::Oom { .. }));
    }
    // A guest that makes them without end is slowed down.
    assert!(begin.elapsed() > Duration::from_millis(500));
    host
}

async fn oom_kill_is_told_before_the_exit_where_the_guest_tells_of_it_late(mut host: Host) -> Host {
    host.create(&["oom-killed"]).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().status, 137);
    assert!(matches!(host.next_event().await, SandboxEvent::Created { .. }));
    assert!(matches!(host.next_event().await, SandboxEvent::Started { .. }));
    assert!(matches!(host.next_event().await, SandboxEvent::Oom { .. }));
    assert!(matches!(host.next_event().await, SandboxEvent::Exited { .. }));
    host
}

async fn sigkill_does_not_cost_the_vm_where_only_the_output_is_read_slowly(host: Host) -> Host {
    let mut host = host.impatient();
    let stdout = host.fifo("out");
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let reader = rustix::fs::open(&stdout, flags, rustix::fs::Mode::empty()).unwrap();
    let stdio = StdioRequest { stdout, ..StdioRequest::default() };
    let vmm = host.create_with(&["print", "40"], stdio, OnExit::Wait).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    while rustix::io::ioctl_fionread(&reader).unwrap() < 40 << 10 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    host.sandbox.signal(init(), 9, Reach::Process).await.unwrap();
    let mut bytes = 0;
    let (begin, mut buffer) = (Instant::now(), vec![0; 4 << 10]);
    while bytes < 40 << 10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match rustix::io::read(&reader, &mut buffer[..]) {
            Ok(count) => bytes += count,
            Err(error) => assert_eq!(error, rustix::io::Errno::AGAIN),
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{bytes} bytes arrived");
    }
    assert!(begin.elapsed() > Duration::from_secs(1), "longer than a guest has to obey");
    assert_eq!(host.sandbox.wait(init()).await.unwrap().failure, None);
    assert!(std::path::Path::new(&format!("/proc/{vmm}")).exists());
    host.sandbox.delete(init()).await.unwrap();
    host
}

async fn h12_output_without_an_end_does_not_keep_a_killed_container(host: Host) -> Host {
    let mut host = host.impatient();
    let (stdout, reader) = host.output("out");
    let stdio = StdioRequest { stdout, ..StdioRequest::default() };
    let vmm = host.create_with(&["endless"], stdio, OnExit::Wait).await.unwrap();
    host.sandbox.start(init()).await.unwrap();
    host.sandbox.signal(init(), 9, Reach::Process).await.unwrap();
    assert_eq!(host.sandbox.wait(init()).await.unwrap().failure, None);
    assert!(std::path::Path::new(&format!("/proc/{vmm}")).exists(), "others may be in the VM");
    // containerd's client waits for the end of the FIFO before it deletes.
    tokio::task::spawn_blocking(|| reader.join().unwrap()).await.unwrap();
    host.sandbox.delete(init()).await.unwrap();
    host
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
