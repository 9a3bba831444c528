//! The other end: VMM, guest kernel and agent in one process, which does what it is told to by the "kernel" (how it
//! boots) and by the container's command line (how it runs).

use std::collections::{BTreeMap, HashMap};
use std::io::{IoSliceMut, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream::{self, StreamExt};
use nacre_protocol::control::{
    CONTROL_FD, Envelope, Event, ExitReason, Failure, FailureKind, FromVmm, MAX_MESSAGE, Reply, Request,
    StartTimings,
};
use nacre_protocol::fs::START_FD;
use nacre_protocol::rpc::agent::{
    ContainerRequest, CreateContainerReply, CreateContainerRequest, CreateExecRequest, Empty, EventReply,
    HelloReply, HelloRequest, ProcessRequest, SignalRequest, SlotRequest, StartReply, StatsReply, Stdio,
    WaitReply,
};
use nacre_protocol::rpc::agent_ttrpc::{Agent, create_agent};
use nacre_protocol::stream::HELLO_LEN;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use ttrpc::asynchronous::transport::{Listener, Socket};
use ttrpc::asynchronous::{Server, TtrpcContext};
use ttrpc::error::get_rpc_status;

/// Plays until the owner closes the control socket.
pub(crate) fn main() {
    let control = inherited(CONTROL_FD);
    let (envelope, mut fds) = receive(&control);
    let Request::Start(config) = envelope.request else { panic!("the first request is no start") };
    let mut take = |index: nacre_protocol::vm::FdIndex| fds[index.0 as usize].take().unwrap();
    let mut kernel = std::fs::File::from(take(config.kernel));
    let mut serial = std::fs::File::from(take(config.serial));
    let listener = StdListener::from(take(config.vsock.listener));
    let agent = StdStream::from(take(config.vsock.host_ports[0].socket));
    let mut mode = String::new();
    kernel.seek(SeekFrom::Start(4)).unwrap();
    kernel.read_to_string(&mut mode).unwrap();

    if mode == "refuse" {
        let failure = Failure { kind: FailureKind::Kvm, message: "KVM says \x1b[31mno".into() };
        send(&control, &FromVmm::Reply { id: envelope.id, result: Err(failure) });
        return;
    }
    if mode == "babble" {
        rustix::net::send(&control, b"{\"reply\":", SendFlags::empty()).unwrap();
        wait_for_end(&control);
        return;
    }
    let started = Reply::Started(StartTimings::default());
    send(&control, &FromVmm::Reply { id: envelope.id, result: Ok(started) });
    if mode == "panic" {
        serial.write_all(b"[    0.1] Kernel panic - not syncing: no \x1b[31minit\r\n").unwrap();
        send(&control, &FromVmm::Event(Event::Exited(ExitReason::GuestReset)));
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let boot = async move {
        let guest = Arc::new(Guest { mode, serial: Mutex::new(Some(serial)), ..Guest::default() });
        let disks = Arc::clone(&guest.disks);
        listener.set_nonblocking(true).unwrap();
        tokio::spawn(take_streams(UnixListener::from_std(listener).unwrap(), guest.clone()));
        let socket = Socket::try_from(agent).unwrap();
        let connections = stream::iter([Ok(socket)]).chain(stream::pending());
        let mut server =
            Server::new().add_listener(Listener::new(connections)).register_service(create_agent(guest));
        server.start().await.unwrap();
        tokio::task::spawn_blocking(move || plug_until_end(&control, &disks)).await.unwrap();
        std::process::exit(0);
    };
    runtime.block_on(boot)
}

/// Plays the file server: says yes to everything, until the owner closes the socket.
pub(crate) fn file_server() {
    let control = inherited(START_FD);
    let mut bytes = vec![0; MAX_MESSAGE];
    rustix::net::recv(&control, &mut bytes[..], RecvFlags::empty()).unwrap();
    let reply = serde_json::to_vec(&nacre_protocol::fs::StartReply::Ok(())).unwrap();
    rustix::net::send(control.as_fd(), &reply, SendFlags::empty()).unwrap();
    wait_for_end(&control);
}

/// A copy of a descriptor that this process was started with.
fn inherited(number: i32) -> OwnedFd {
    let own =
        rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty()).unwrap();
    rustix::process::pidfd_getfd(own, number, rustix::process::PidfdGetfdFlags::empty()).unwrap()
}

fn receive(control: &OwnedFd) -> (Envelope, Vec<Option<OwnedFd>>) {
    let mut bytes = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(control, &mut iov, &mut ancillary, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights.map(Some));
        }
    }
    (serde_json::from_slice(&bytes[..received.bytes]).unwrap(), fds)
}

fn send(control: &OwnedFd, message: &FromVmm) {
    rustix::net::send(control.as_fd(), &serde_json::to_vec(message).unwrap(), SendFlags::empty()).unwrap();
}

/// Plugs what it is given into slots from 10 on, until the owner closes the socket.
fn plug_until_end(control: &OwnedFd, plugged: &Mutex<BTreeMap<u32, String>>) {
    let poll = || {
        let mut fds = [rustix::event::PollFd::new(control, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        let mut byte = [0; 1];
        rustix::net::recv(control, &mut byte[..], RecvFlags::PEEK).is_ok_and(|(count, _)| count > 0)
    };
    while poll() {
        let (Envelope { id, request }, _fds) = receive(control);
        let mut plugged = plugged.lock().unwrap();
        let result = match request {
            Request::PlugDisk(disk) => {
                let slot = (10..26).find(|slot| !plugged.contains_key(slot));
                let full =
                    Failure { kind: FailureKind::State, message: "no free hot-plug slot is left".into() };
                slot.map(|slot| {
                    plugged.insert(slot, disk.id);
                    Reply::Plugged { slot }
                })
                .ok_or(full)
            }
            Request::Unplug { slot } => {
                plugged.remove(&slot).expect("only what was plugged is unplugged");
                Ok(Reply::Done)
            }
            other => panic!("the owner asks for {other:?}"),
        };
        send(control, &FromVmm::Reply { id, result });
    }
}

fn wait_for_end(control: &OwnedFd) {
    let mut byte = [0; 1];
    while rustix::net::recv(control, &mut byte[..], RecvFlags::empty()).is_ok_and(|(count, _)| count > 0) {}
}

/// A process, by the command line that it plays.
#[derive(Clone)]
struct Process {
    args: Vec<String>,
    stdio: Stdio,
    start: Arc<Notify>,
    exit: watch::Sender<Option<u32>>,
}

#[derive(Default)]
struct Guest {
    mode: String,
    serial: Mutex<Option<std::fs::File>>,
    processes: Mutex<HashMap<(String, String), Process>>,
    streams: Mutex<HashMap<Vec<u8>, UnixStream>>,
    arrived: Notify,
    /// Disks that were plugged, by their slots.
    disks: Arc<Mutex<BTreeMap<u32, String>>>,
}

async fn take_streams(listener: UnixListener, guest: Arc<Guest>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut hello = vec![0; b"CONNECT 1025\n".len() + HELLO_LEN];
        stream.read_exact(&mut hello).await.unwrap();
        stream.write_all(b"OK 5000\n").await.unwrap();
        guest.streams.lock().unwrap().insert(hello[hello.len() - 16..].to_vec(), stream);
        guest.arrived.notify_waiters();
    }
}

impl Guest {
    /// Waits for the stream of this token; none for an empty one.
    async fn stream(&self, token: &[u8]) -> Option<UnixStream> {
        while !token.is_empty() {
            let arrived = self.arrived.notified();
            if let Some(stream) = self.streams.lock().unwrap().remove(token) {
                return Some(stream);
            }
            arrived.await;
        }
        None
    }

    fn add(&self, container: &str, exec: &str, args: Vec<String>, stdio: Stdio) -> Process {
        let process = Process { args, stdio, start: Arc::new(Notify::new()), exit: watch::Sender::new(None) };
        self.processes.lock().unwrap().insert((container.into(), exec.into()), process.clone());
        process
    }

    fn find(&self, request: &ProcessRequest) -> ttrpc::Result<Process> {
        let key = (request.container_id.clone(), request.exec_id.clone());
        let found = self.processes.lock().unwrap().get(&key).cloned();
        found.ok_or_else(|| get_rpc_status(ttrpc::Code::NOT_FOUND, "no such process"))
    }

    /// The whole life of a process after its start.
    async fn play(self: Arc<Self>, process: Process) {
        process.start.notified().await;
        let mut stdout = self.stream(&process.stdio.stdout).await;
        let args: Vec<&str> = process.args.iter().map(String::as_str).collect();
        let status = match args[..] {
            ["exit", status] => status.parse().unwrap(),
            ["print", count] => {
                let line = b"0123456789abcdef".repeat(64);
                for _ in 0..count.parse::<usize>().unwrap() {
                    stdout.as_mut().unwrap().write_all(&line).await.unwrap();
                }
                0
            }
            ["cat"] => {
                let mut stdin = self.stream(&process.stdio.stdin).await.unwrap();
                tokio::io::copy(&mut stdin, stdout.as_mut().unwrap()).await.unwrap();
                0
            }
            ["hold-output"] => {
                // A grandchild keeps the stream open after the end of the process.
                std::mem::forget(stdout.take());
                0
            }
            ["oom-killed"] => 137,
            ["endless"] => {
                // Somebody else has the stream, and writes on.
                let mut stdout = stdout.take().unwrap();
                tokio::spawn(async move {
                    while stdout.write_all(b"more\n").await.is_ok() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                });
                0
            }
            ["panic"] => {
                let mut serial = self.serial.lock().unwrap().take().unwrap();
                serial.write_all(b"[    9.9] Kernel panic - not syncing: Fatal exception\r\n").unwrap();
                std::process::exit(0);
            }
            _ => return std::future::pending().await,
        };
        drop(stdout);
        process.exit.send_replace(Some(status));
    }
}

fn args_of(json: &[u8], pointer: &str) -> Vec<String> {
    let value: serde_json::Value = serde_json::from_slice(json).unwrap();
    serde_json::from_value(value.pointer(pointer).unwrap().clone()).unwrap()
}

#[async_trait]
impl Agent for Guest {
    async fn hello(&self, _: &TtrpcContext, _: HelloRequest) -> ttrpc::Result<HelloReply> {
        if self.mode == "mute" {
            std::future::pending::<()>().await;
        }
        let kernel_release = if self.mode == "giant" { "x".repeat(5 << 20) } else { "6.12.0".into() };
        Ok(HelloReply {
            kernel_release,
            init_started_us: 1000,
            ready_us: 2000,
            replied_us: 2500,
            ..HelloReply::default()
        })
    }

    async fn create_container(
        &self,
        _: &TtrpcContext,
        request: CreateContainerRequest,
    ) -> ttrpc::Result<CreateContainerReply> {
        let args = args_of(&request.spec_json, "/process/args");
        if args[0] == "refuse" {
            let text = format!("\x1b[2J\x1b[31mroot:\n{}", "x".repeat(1 << 20));
            return Err(get_rpc_status(ttrpc::Code::NOT_FOUND, text));
        }
        if request.rootfs.has_shared() {
            assert!(request.rootfs.shared().name.ends_with("-rootfs"), "{:?}", request.rootfs);
            self.add(&request.container_id, "", args, request.stdio.unwrap_or_default());
            return Ok(CreateContainerReply { pid: 200, ..CreateContainerReply::default() });
        }
        let disk = &request.rootfs.layered().disk_id;
        if disk != "rootfs" {
            assert!(self.disks.lock().unwrap().values().any(|id| id == disk), "{disk} is not plugged");
            assert!(request.devices.iter().all(|device| device.disk_id.starts_with('c')));
        }
        let layers =
            request.rootfs.layered().layers.iter().map(|layer| (layer.offset_bytes, layer.length_bytes));
        assert_eq!(layers.collect::<Vec<_>>(), [(0, 8192)]);
        self.add(&request.container_id, "", args, request.stdio.unwrap_or_default());
        Ok(CreateContainerReply { pid: 100, rootfs_us: 10, create_us: 20, ..CreateContainerReply::default() })
    }

    async fn bind_slot(&self, _: &TtrpcContext, request: SlotRequest) -> ttrpc::Result<Empty> {
        assert!(self.disks.lock().unwrap().contains_key(&request.slot), "slot {} is empty", request.slot);
        if self.mode == "no-disks" {
            return Err(get_rpc_status(ttrpc::Code::INTERNAL, "the driver failed"));
        }
        Ok(Empty::new())
    }

    async fn unbind_slot(&self, _: &TtrpcContext, request: SlotRequest) -> ttrpc::Result<Empty> {
        assert!(self.disks.lock().unwrap().contains_key(&request.slot), "slot {} is empty", request.slot);
        Ok(Empty::new())
    }

    async fn create_exec(&self, _: &TtrpcContext, request: CreateExecRequest) -> ttrpc::Result<Empty> {
        let args = args_of(&request.process_json, "/args");
        self.add(&request.container_id, &request.exec_id, args, request.stdio.unwrap_or_default());
        Ok(Empty::new())
    }

    async fn start(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<StartReply> {
        let process = self.find(&request)?;
        if process.args[0] == "missing" {
            process.exit.send_replace(Some(127));
            return Err(get_rpc_status(ttrpc::Code::NOT_FOUND, "exec: \"missing\": not found"));
        }
        // The process plays on in a guest of the same state.
        let guest = Arc::new(Guest {
            streams: Mutex::new(std::mem::take(&mut *self.streams.lock().unwrap())),
            serial: Mutex::new(self.serial.lock().unwrap().take()),
            ..Guest::default()
        });
        tokio::spawn(guest.play(process.clone()));
        process.start.notify_one();
        Ok(StartReply { pid: 101, start_us: 5, ..StartReply::default() })
    }

    async fn signal(&self, _: &TtrpcContext, request: SignalRequest) -> ttrpc::Result<Empty> {
        let name = ProcessRequest {
            container_id: request.container_id,
            exec_id: request.exec_id,
            ..Default::default()
        };
        let process = self.find(&name)?;
        if process.args[0] == "deaf" {
            std::future::pending::<()>().await;
        }
        if process.args[0] != "undying" {
            process.exit.send_replace(Some(128 + request.signal));
        }
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitReply> {
        let process = self.find(&request)?;
        if process.args[0] == "bad-status" {
            return Ok(WaitReply { exit_status: 1 << 31, ..WaitReply::default() });
        }
        let mut exit = process.exit.subscribe();
        let exit_status = exit.wait_for(Option::is_some).await.unwrap().unwrap();
        let oom_killed = process.args[0] == "oom-killed";
        Ok(WaitReply { exit_status, oom_killed, ..WaitReply::default() })
    }

    async fn delete(&self, _: &TtrpcContext, request: ProcessRequest) -> ttrpc::Result<WaitReply> {
        self.find(&request)?;
        self.processes.lock().unwrap().remove(&(request.container_id, request.exec_id));
        Ok(WaitReply::default())
    }

    async fn freeze(&self, _: &TtrpcContext, _: ContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn thaw(&self, _: &TtrpcContext, _: ContainerRequest) -> ttrpc::Result<Empty> {
        Ok(Empty::new())
    }

    async fn stats(&self, _: &TtrpcContext, _: ContainerRequest) -> ttrpc::Result<StatsReply> {
        Ok(StatsReply { cpu_usage_usec: 7, ..StatsReply::default() })
    }

    async fn next_event(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<EventReply> {
        let container_id = match self.mode.as_str() {
            "oom" => "web".into(),
            "foreign-oom" => "../../etc".into(),
            _ => std::future::pending().await,
        };
        Ok(EventReply { container_id, kind: "oom".into(), ..EventReply::default() })
    }
}
