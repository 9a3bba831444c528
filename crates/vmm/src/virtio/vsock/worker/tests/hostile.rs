//! What hostile guests and clumsy hosts try.

use super::*;

#[test]
fn v01_buffer_that_crosses_the_end_of_memory_is_dropped() {
    let mut guest = Guest::with_buffers(4);
    let (mut client, wire) = guest.stream();
    let at = LOW.1 as u64 - 50;
    let bytes = Wire { len: 100, ..wire.op(RW) }.bytes();
    guest.driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    guest.tx.add(&[(at, 144, 0)]);
    guest.tx.add(&[(at, 44, 0), (u64::MAX - 255, 512, 0)]);
    guest.tx.kick();
    guest.run();
    assert_eq!(guest.tx.used().len(), 2);
    assert_eq!(guest.driver.errors(), 2);
    assert!(read(&mut client).is_empty());
}

#[test]
fn s24_foreign_cids_and_tiny_headers_are_dropped() {
    let mut guest = Guest::with_buffers(4);
    let wire = Wire::new(1, CONTROL_PORT, REQUEST);
    for (src_cid, dst_cid) in [(2, 2), (3, 3), (4, 2), (3, 1), (1 << 32 | 3, 2)] {
        guest.send(Wire { src_cid, dst_cid, ..wire }, b"");
    }
    guest.tx.add(&[(guest.tx_place, 43, 0)]);
    guest.tx.add(&[(guest.tx_place, 44, WRITE)]);
    guest.tx.kick();
    assert!(guest.take().is_empty());
    assert_eq!(guest.driver.errors(), 7);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn s24_unknown_type_and_operation_are_reset() {
    let mut guest = Guest::with_buffers(8);
    let wire = Wire::new(1, 2, RW);
    guest.send(Wire { kind: 2, ..wire }, b"");
    assert_eq!(guest.ops(), [RST]);
    for op in [0, 8, u16::MAX] {
        guest.send(wire.op(op), b"");
        assert_eq!(guest.ops(), [RST]);
    }
    let (mut client, wire) = guest.stream();
    guest.send(wire.op(99), b"");
    assert_eq!(guest.ops(), [RST]);
    assert!(is_closed(&mut client));
}

#[test]
fn s24_length_that_the_chain_does_not_have_kills_the_stream() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    guest.send(Wire { len: 100, ..wire.op(RW) }, b"short");
    assert_eq!(guest.ops(), [RST]);
    assert!(is_closed(&mut client));
}

#[test]
fn s24_a_reset_is_never_answered_by_one() {
    let mut guest = Guest::with_buffers(8);
    guest.send(Wire::new(9, 9, RST), b"");
    assert!(guest.take().is_empty());
    guest.send(Wire::new(9, 9, RW), b"x");
    assert_eq!(guest.ops(), [RST]);
}

#[test]
fn s25_v19_requests_for_unknown_ports_cost_no_connection() {
    let mut guest = Guest::with_buffers(64);
    for port in 0..2000 {
        guest.send(Wire::new(port, 7, REQUEST), b"");
        assert_eq!(guest.ops(), [RST]);
    }
    assert_eq!(guest.worker.muxer.counts(), (0, 0, 0));
}

#[test]
fn s25_same_port_twice_kills_the_stream_and_leaves_others() {
    let mut guest = Guest::with_buffers(8);
    let (mut other, other_wire) = guest.stream();
    let wire = guest.control_stream();
    guest.send(wire.op(REQUEST), b"");
    assert_eq!(guest.ops(), [RST]);
    assert!(is_closed(&mut guest.control));
    guest.send(other_wire.op(RW), b"here");
    assert_eq!(read(&mut other), b"here");
}

#[test]
fn s25_clients_above_the_cap_see_end_of_file() {
    let mut guest = Guest::new();
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        clients.push(guest.client(b"CONNECT 1\n"));
        guest.run();
    }
    assert_eq!(guest.connections(), MAX_CONNECTIONS);
    let mut late = guest.client(b"");
    guest.run();
    assert!(is_closed(&mut late));
    clients.pop();
    guest.run();
    let mut next = guest.client(b"CONNECT 1\n");
    guest.run();
    assert!(!is_closed(&mut next));
}

#[test]
fn slow_handshakes_lose_their_place_to_newer_clients() {
    let mut guest = Guest::with_buffers(8);
    let mut slow: Vec<_> = (0..MAX_HANDSHAKES).map(|_| guest.client(b"CONN")).collect();
    guest.run();
    assert_eq!(guest.worker.muxer.counts().1, MAX_HANDSHAKES);
    let _client = guest.client(b"CONNECT 5\n");
    assert_eq!(guest.take_one().op, REQUEST);
    assert!(is_closed(&mut slow[0]));
    assert!(!is_closed(&mut slow[1]));
}

#[test]
fn bad_connect_lines_and_early_leavers_are_closed() {
    let mut guest = Guest::with_buffers(8);
    for line in [&b"GET / HTTP/1.1\r\n"[..], b"CONNECT x\n", b"\n", &[b'x'; 40], b"CONNECT 4294967296\n"] {
        let mut client = guest.client(line);
        guest.run();
        assert!(is_closed(&mut client));
    }
    drop(guest.client(b"CONNECT 10"));
    assert!(guest.take().is_empty());
    assert_eq!(guest.worker.muxer.counts(), (0, 0, 0));
}

#[test]
fn client_that_leaves_before_the_answer_is_reset() {
    let mut guest = Guest::with_buffers(8);
    let client = guest.client(b"CONNECT 1025\n");
    assert_eq!(guest.ops(), [REQUEST]);
    drop(client);
    assert_eq!(guest.ops(), [RST]);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn s26_sending_without_credit_kills_the_stream() {
    let mut guest = Guest::with_buffers(16);
    let (mut client, wire) = guest.stream();
    let mut packets = Vec::new();
    // The host reads nothing: what the socket takes is forwarded, then the credit runs out.
    for _ in 0..40 {
        guest.send(wire.op(RW), &[1; 60_000]);
        packets.extend(guest.ops());
        if packets.contains(&RST) {
            break;
        }
    }
    assert!(packets.contains(&RST), "{packets:?}");
    assert_eq!(guest.connections(), 0);
    assert!(!read(&mut client).is_empty());
}

#[test]
fn s26_forged_fwd_cnt_kills_the_stream() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    guest.send(Wire { fwd_cnt: 1, ..wire.op(CREDIT_UPDATE) }, b"");
    assert_eq!(guest.ops(), [RST]);
    assert!(is_closed(&mut client));
}

#[test]
fn s26_no_credit_means_no_bytes_until_it_comes() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    guest.send(Wire { buf_alloc: 0, ..wire.op(CREDIT_UPDATE) }, b"");
    client.write_all(b"held back").unwrap();
    assert!(guest.take().is_empty());
    guest.send(Wire { buf_alloc: 4, ..wire.op(CREDIT_UPDATE) }, b"");
    assert_eq!(guest.take_one().payload, b"held");
}

#[test]
fn v21_huge_buf_alloc_makes_the_host_buffer_nothing() {
    let mut guest = Guest::with_buffers(2);
    let (mut client, wire) = guest.stream();
    guest.send(Wire { buf_alloc: u32::MAX, ..wire.op(CREDIT_UPDATE) }, b"");
    let mut written = 0;
    while let Ok(count) = client.write(&[3; 65536]) {
        written += count;
        guest.run();
    }
    // The socket's own buffer and two rx buffers: nothing in between grew.
    assert!(written < 1 << 20, "{written}");
    assert_eq!(guest.rx.used().len(), 2);
}

#[test]
fn v22_refused_connects_leave_room_for_a_valid_one() {
    let mut guest = Guest::with_buffers(32);
    for _ in 0..10_000 {
        let client = guest.client(b"CONNECT 9\n");
        let request = guest.take_one();
        guest.send(Wire::new(9, request.host_port, RST), b"");
        drop(client);
    }
    assert_eq!(guest.worker.muxer.counts(), (0, 0, 0));
    guest.stream();
}

#[test]
fn s27_bytes_after_a_shutdown_kill_the_stream() {
    let mut guest = Guest::with_buffers(8);
    let (_client, wire) = guest.stream();
    guest.send(wire.op(SHUTDOWN).flags(NO_SEND), b"");
    guest.send(wire.op(RW), b"late");
    assert_eq!(guest.ops(), [RST]);
    guest.send(wire.op(RW), b"later");
    assert_eq!(guest.ops(), [RST]);
}

#[test]
fn s13_resets_that_nobody_takes_stop_the_tx_queue_not_the_device() {
    let mut guest = Guest::new();
    for port in 0..120 {
        guest.queue(Wire::new(port, 7, RW), b"x");
    }
    assert_ne!(guest.run(), Next::Again);
    assert_eq!(guest.tx.used().len(), MAX_RESETS);
    guest.fill_rx(120);
    assert_eq!(guest.take().len(), 120);
    assert_eq!(guest.tx.used().len(), 120 - MAX_RESETS);
}

#[test]
fn s23_unusable_rx_buffers_are_given_back_and_others_used() {
    let mut guest = Guest::new();
    let small = guest.driver.place(44);
    guest.rx.add(&[(small, 44, WRITE)]);
    guest.rx.add(&[(small, 44, 0)]);
    guest.rx.add(&[(LOW.1 as u64 - 4, 100, WRITE)]);
    guest.send(Wire::new(1, 7, RW), b"x");
    let used: Vec<_> = guest.rx.used().into_iter().map(|(_, len)| len).collect();
    assert_eq!(used, [0, 0, 0]);
    guest.fill_rx(1);
    assert_eq!(guest.ops(), [RST]);
}

fn any_wire() -> impl Strategy<Value = Wire> {
    let ports = (1020u32..1028, prop_oneof![Just(CONTROL_PORT), (1u32 << 30)..((1 << 30) + 3)]);
    let alloc = prop_oneof![Just(0u32), 0u32..5000, any::<u32>()];
    (ports, 0u16..9, 0u32..4, 0u32..200, alloc, 0u32..300).prop_map(
        |((guest_port, host_port), op, flags, len, buf_alloc, fwd_cnt)| Wire {
            flags,
            len,
            buf_alloc,
            fwd_cnt,
            ..Wire::new(guest_port, host_port, op)
        },
    )
}

proptest! {
    /// S40: any sequence of packets and client actions ends in a device that is idle, bounded and still works.
    #[test]
    fn s40_random_packets_leave_a_working_device(
        steps in prop::collection::vec((any_wire(), 0usize..200, 0u8..4), 1..60),
    ) {
        let mut guest = Guest::with_buffers(64);
        let mut clients = Vec::new();
        for (wire, payload, action) in steps {
            match action {
                0 => clients.push(guest.client(b"CONNECT 1025\nabc")),
                1 => drop(clients.pop()),
                _ => {}
            }
            guest.send(wire, &vec![1; payload]);
            guest.take();
        }
        let (connections, handshakes, _) = guest.worker.muxer.counts();
        prop_assert!(connections + handshakes <= MAX_CONNECTIONS);
        prop_assert!(!guest.driver.needs_reset());
        drop(clients);
        guest.take();
        let mut client = guest.client(b"CONNECT 77\n");
        let request = guest.take().into_iter().find(|packet| packet.guest_port == 77).unwrap();
        guest.send(Wire::new(77, request.host_port, RESPONSE), b"");
        prop_assert!(read(&mut client).starts_with(b"OK "));
    }
}
