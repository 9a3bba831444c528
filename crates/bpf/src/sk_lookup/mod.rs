//! Programs that choose the socket which gets a packet for a local address of a network namespace, before the kernel looks
//! for one that is bound there (kernel: Documentation/bpf/prog_sk_lookup.rst; Linux 5.9).
//!
//! One listening socket then takes the connections to every port of an address, or a port that somebody else binds too,
//! without a packet filter and without address translation. What is connected already is not looked up.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

use crate::Insn;
use crate::sys::{self, MapCreate};

/// Most destinations of one program.
const MAX_DESTINATIONS: usize = 8;

const MAP_TYPE_SOCKMAP: u32 = 15;
const PROG_TYPE_SK_LOOKUP: u32 = 30;
const SK_LOOKUP: u32 = 36;

/// What a packet is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A new connection.
    Tcp,
    /// A datagram.
    Udp,
}

/// Whose packets a socket gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    /// Kind of packet; the socket is of the same.
    pub transport: Transport,
    /// Its destination. A socket of IPv6 that is not for IPv6 only takes both.
    pub address: IpAddr,
    /// Its destination port; none: every port.
    pub port: Option<u16>,
}

/// Packets go to the sockets as long as this lives.
#[derive(Debug)]
pub struct Steering {
    _link: OwnedFd,
}

/// Lets each socket have the packets of its destination, in the network namespace that `namespace` is a file of. The sockets
/// belong to that namespace, and are bound, those of TCP listening.
///
/// # Errors
/// Those of bpf(2): `Errno::INVAL` from kernels before 5.9, `Errno::PERM` without CAP_NET_ADMIN and CAP_BPF; `Errno::TOOBIG`
/// for more than eight destinations.
pub fn steer(namespace: impl AsFd, wanted: &[(Destination, BorrowedFd<'_>)]) -> rustix::io::Result<Steering> {
    if wanted.len() > MAX_DESTINATIONS {
        return Err(Errno::TOOBIG);
    }
    let max_entries = u32::try_from(wanted.len()).map_err(|_| Errno::TOOBIG)?;
    let map = MapCreate { map_type: MAP_TYPE_SOCKMAP, key_size: 4, value_size: 8, max_entries };
    let sockets = sys::create_map(&map)?;
    for (key, (_, socket)) in (0..).zip(wanted) {
        sys::put_socket(&sockets, key, socket)?;
    }
    let destinations: Vec<Destination> = wanted.iter().map(|(destination, _)| *destination).collect();
    let program = program(&destinations, sys::number(&sockets).cast_signed());
    let program = sys::load(&program, PROG_TYPE_SK_LOOKUP, SK_LOOKUP)?;
    // The link keeps the program, and that its map.
    Ok(Steering { _link: sys::link(&program, &namespace, SK_LOOKUP)? })
}

const LOAD_WORD: u8 = 0x61;
const LOAD_IMMEDIATE64: u8 = 0x18;
const STORE_WORD_IMMEDIATE: u8 = 0x62;
const MOV64_IMMEDIATE: u8 = 0xb7;
const MOV64_REGISTER: u8 = 0xbf;
const ADD64_IMMEDIATE: u8 = 0x07;
const JEQ_IMMEDIATE: u8 = 0x15;
const JNE32_IMMEDIATE: u8 = 0x56;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// Source "register" of a 64-bit immediate that is a map's descriptor.
const PSEUDO_MAP_FD: u8 = 1;

const MAP_LOOKUP_ELEM: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

/// Registers: 0 is the result, 1 to 5 are arguments, 6 and 7 outlive calls, 10 is the end of the stack.
const RESULT: u8 = 0;
const ARGUMENT: [u8; 3] = [1, 2, 3];
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const STACK: u8 = 10;

/// Fields of struct bpf_sk_lookup (linux/bpf.h). Addresses are in network order, the local port is a number.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;

/// Let the kernel look for a socket as ever, or take the one that was assigned.
const PASS: i32 = 1;

/// For each destination: skip its block where a field differs, else assign its socket. Assigning and not being able to look
/// the same to whoever sends: the kernel goes on with its own look.
fn program(destinations: &[Destination], map: i32) -> Vec<Insn> {
    let mut program = vec![insn(MOV64_REGISTER, CONTEXT, ARGUMENT[0], 0, 0)];
    for (key, destination) in (0..).zip(destinations) {
        let fields = fields(destination);
        let assign = assign(key, map);
        for (at, (offset, value)) in fields.iter().enumerate() {
            let left = 2 * (fields.len() - at - 1) + assign.len();
            program.push(insn(LOAD_WORD, ARGUMENT[1], CONTEXT, *offset, 0));
            program.push(insn(JNE32_IMMEDIATE, ARGUMENT[1], 0, left as i16, *value));
        }
        program.extend(assign);
    }
    program.extend(end());
    program
}

/// What must be equal.
fn fields(destination: &Destination) -> Vec<(i16, i32)> {
    let word = |bytes: [u8; 4]| i32::from_ne_bytes(bytes);
    let protocol = match destination.transport {
        Transport::Tcp => libc::IPPROTO_TCP,
        Transport::Udp => libc::IPPROTO_UDP,
    };
    let mut fields = vec![(PROTOCOL, protocol)];
    match destination.address {
        IpAddr::V4(address) => {
            fields.extend([(FAMILY, libc::AF_INET), (LOCAL_IP4, word(address.octets()))]);
        }
        IpAddr::V6(address) => {
            fields.push((FAMILY, libc::AF_INET6));
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            fields.extend((LOCAL_IP6..).step_by(4).zip(words.iter().map(|bytes| word(*bytes))));
        }
    }
    fields.extend(destination.port.map(|port| (LOCAL_PORT, i32::from(port))));
    fields
}

/// Assigns the socket in this entry of the map, and ends; goes on where the entry is empty.
fn assign(key: i32, map: i32) -> Vec<Insn> {
    let found = [
        insn(MOV64_REGISTER, SOCKET, RESULT, 0, 0),
        insn(MOV64_REGISTER, ARGUMENT[0], CONTEXT, 0, 0),
        insn(MOV64_REGISTER, ARGUMENT[1], RESULT, 0, 0),
        insn(MOV64_IMMEDIATE, ARGUMENT[2], 0, 0, 0),
        insn(CALL, 0, 0, 0, SK_ASSIGN),
        insn(MOV64_REGISTER, ARGUMENT[0], SOCKET, 0, 0),
        insn(CALL, 0, 0, 0, SK_RELEASE),
    ];
    let mut assign = vec![
        insn(STORE_WORD_IMMEDIATE, STACK, 0, -4, key),
        insn(MOV64_REGISTER, ARGUMENT[1], STACK, 0, 0),
        insn(ADD64_IMMEDIATE, ARGUMENT[1], 0, 0, -4),
        insn(LOAD_IMMEDIATE64, ARGUMENT[0], PSEUDO_MAP_FD, 0, map),
        // Its upper half.
        insn(0, 0, 0, 0, 0),
        insn(CALL, 0, 0, 0, MAP_LOOKUP_ELEM),
        insn(JEQ_IMMEDIATE, RESULT, 0, (found.len() + end().len()) as i16, 0),
    ];
    assign.extend(found);
    assign.extend(end());
    assign
}

fn end() -> [Insn; 2] {
    [insn(MOV64_IMMEDIATE, RESULT, 0, 0, PASS), insn(EXIT, 0, 0, 0, 0)]
}

fn insn(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Insn {
    Insn { code, registers: source << 4 | destination, offset, immediate }
}

#[cfg(test)]
mod tests;
