//! The server is played over a socket pair.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread::JoinHandle;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::virtio::testing::{Driver, LOW, MockQueue, WRITE};

const GET_FEATURES: u32 = 1;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_ADDR: u32 = 9;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_VRING_ENABLE: u32 = 18;

const PROTOCOL: u64 = 1 << 30;
const REPLY_ACK: u64 = 1 << 3;
const NEED_REPLY: u32 = 8;

/// A message that the server got.
struct Message {
    code: u32,
    body: Vec<u8>,
    file: Option<File>,
}

impl Message {
    fn u64_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.body[at..at + 8].try_into().unwrap())
    }

    fn u32_at(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.body[at..at + 4].try_into().unwrap())
    }
}

/// Answers every message as a server does, and passes it on. It ends with the connection, or after `GET_VRING_BASE`
/// of the last queue if it is to `die` then.
fn serve(mut socket: UnixStream, features: u64, seen: mpsc::Sender<Message>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        loop {
            let mut header = [0; 12];
            let Ok((12, file)) = socket.recv_with_fd(&mut header) else { return };
            let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
            let (code, flags) = (word(0), word(4));
            let mut body = vec![0; word(8) as usize];
            socket.read_exact(&mut body).unwrap();
            let reply = match code {
                GET_FEATURES => Some(features.to_le_bytes().to_vec()),
                GET_PROTOCOL_FEATURES => Some(REPLY_ACK.to_le_bytes().to_vec()),
                GET_VRING_BASE => Some(body.clone()),
                _ if flags & NEED_REPLY != 0 => Some(vec![0; 8]),
                _ => None,
            };
            if let Some(reply) = reply {
                let mut bytes = Vec::new();
                bytes.extend(code.to_le_bytes());
                bytes.extend(5u32.to_le_bytes());
                bytes.extend((reply.len() as u32).to_le_bytes());
                bytes.extend(reply);
                socket.write_all(&bytes).unwrap();
            }
            let _ = seen.send(Message { code, body, file });
        }
    })
}

struct Setup {
    driver: Driver,
    queues: [MockQueue; 2],
    fs: Fs,
    seen: mpsc::Receiver<Message>,
    server_end: UnixStream,
    server: JoinHandle<()>,
}

fn setup(features: u64) -> Setup {
    let (near, far) = UnixStream::pair().unwrap();
    let (sender, seen) = mpsc::channel();
    let server_end = far.try_clone().unwrap();
    let server = serve(far, features, sender);
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(LOW.1 as u64).unwrap();
    let region = (GuestAddress(0), LOW.1, Some(FileOffset::new(file, 0)));
    let mut driver = Driver::with_memory(GuestMemoryMmap::from_ranges_with_files([region]).unwrap());
    let queues = QUEUE_SIZES.map(|size| driver.queue(size));
    Setup { driver, queues, fs: Fs::new("nacre", near.into()).unwrap(), seen, server_end, server }
}

impl Setup {
    fn activate(&mut self) -> Result<(), ActivateError> {
        let queues = [&self.queues[0], &self.queues[1]];
        self.fs.activate(self.driver.activation(BASE_FEATURES, &queues))
    }

    /// Messages so far.
    fn messages(&self) -> Vec<Message> {
        self.seen.try_iter().collect()
    }

    fn end(self) {
        drop((self.fs, self.server_end));
        self.server.join().unwrap();
    }
}

fn of(messages: &[Message], code: u32) -> Vec<&Message> {
    messages.iter().filter(|message| message.code == code).collect()
}

#[test]
fn server_gets_memory_and_rings_that_match() {
    let mut setup = setup(BASE_FEATURES | PROTOCOL);
    setup.activate().unwrap();
    // The last answer came before its message was passed on: wait for both queues to be enabled.
    let mut messages = Vec::new();
    while of(&messages, SET_VRING_ENABLE).len() < 2 {
        messages.push(setup.seen.recv().unwrap());
    }
    let table = of(&messages, SET_MEM_TABLE)[0];
    assert!(table.file.is_some());
    let (guest, size, user) = (table.u64_at(8), table.u64_at(16), table.u64_at(24));
    assert_eq!((guest, size), (0, LOW.1 as u64));
    for (index, address) in of(&messages, SET_VRING_ADDR).iter().enumerate() {
        let queue = &setup.queues[index];
        assert_eq!(address.u32_at(0) as usize, index);
        assert_eq!(address.u64_at(8) - user, queue.table);
        assert_eq!(address.u64_at(16) - user, queue.used);
        assert_eq!(address.u64_at(24) - user, queue.avail);
    }
    setup.fs.reset();
    setup.end();
}

#[test]
fn kicks_reach_the_server_and_calls_the_driver() {
    let mut setup = setup(BASE_FEATURES | PROTOCOL);
    setup.activate().unwrap();
    let mut messages = Vec::new();
    while of(&messages, SET_VRING_ENABLE).len() < 2 {
        messages.push(setup.seen.recv().unwrap());
    }
    setup.queues[1].add(&[(0x9000, 40, 0), (0x9100, 80, WRITE)]);
    setup.queues[1].kick();
    let mut count = [0; 8];
    of(&messages, SET_VRING_KICK)[1].file.as_ref().unwrap().read_exact(&mut count).unwrap();
    assert_eq!(u64::from_le_bytes(count), 1);
    assert!(!setup.driver.take_interrupt());
    of(&messages, SET_VRING_CALL)[1].file.as_ref().unwrap().write_all(&1u64.to_le_bytes()).unwrap();
    while !setup.driver.take_interrupt() {
        std::thread::yield_now();
    }
    setup.fs.reset();
    setup.end();
}

#[test]
fn reset_takes_the_queues_back_and_the_next_driver_gets_them() {
    let mut setup = setup(BASE_FEATURES | PROTOCOL);
    setup.activate().unwrap();
    setup.fs.reset();
    setup.activate().unwrap();
    setup.fs.reset();
    let messages = setup.messages();
    // The very last message may still be on its way.
    assert!(of(&messages, GET_VRING_BASE).len() >= 3);
    assert_eq!(of(&messages, GET_PROTOCOL_FEATURES).len(), 1);
    setup.end();
}

#[test]
fn pause_disables_the_queues_and_resume_kicks_them() {
    let mut setup = setup(BASE_FEATURES | PROTOCOL);
    setup.activate().unwrap();
    setup.fs.pause();
    setup.fs.resume();
    let states: Vec<u32> = {
        let mut messages = Vec::new();
        while of(&messages, SET_VRING_ENABLE).len() < 6 {
            messages.push(setup.seen.recv().unwrap());
        }
        of(&messages, SET_VRING_ENABLE).iter().map(|message| message.u32_at(4)).collect()
    };
    assert_eq!(states, [1, 1, 0, 0, 1, 1]);
    assert_eq!(setup.queues[1].kick.read().unwrap(), 1);
    setup.fs.reset();
    setup.end();
}

#[test]
fn death_of_the_server_latches_needs_reset_and_later_activations_fail() {
    let mut setup = setup(BASE_FEATURES | PROTOCOL);
    setup.activate().unwrap();
    setup.server_end.shutdown(std::net::Shutdown::Both).unwrap();
    while !setup.driver.needs_reset() {
        std::thread::yield_now();
    }
    setup.fs.reset();
    assert!(matches!(setup.activate(), Err(ActivateError::Backend(_))));
    setup.end();
}

#[test]
fn feature_that_the_server_lacks_fails_the_activation() {
    let mut setup = setup(PROTOCOL | 1 << 32);
    assert!(matches!(setup.activate(), Err(ActivateError::Backend(_))));
    setup.end();
}

#[test]
fn missing_queue_fails_the_activation() {
    let mut setup = setup(BASE_FEATURES | PROTOCOL);
    let activation = setup.driver.activation(BASE_FEATURES, &[&setup.queues[0]]);
    assert!(matches!(setup.fs.activate(activation), Err(ActivateError::QueueNotReady(1))));
    setup.end();
}

#[test]
fn tag_stands_in_the_configuration() {
    let setup = setup(0);
    let mut config = [0; CONFIG_LEN];
    setup.fs.read_config(0, &mut config);
    assert_eq!(&config[..6], b"nacre\0");
    assert_eq!(config[TAG_LEN..], [1, 0, 0, 0]);
    setup.end();
}

#[test]
fn tags_that_do_not_fit_are_refused() {
    for tag in ["", &"x".repeat(TAG_LEN + 1)] {
        let (near, _) = UnixStream::pair().unwrap();
        assert!(matches!(Fs::new(tag, near.into()), Err(FsError::Tag(_))));
    }
}
