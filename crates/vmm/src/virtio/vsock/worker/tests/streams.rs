//! What well-behaved guests and hosts rely on.

use std::net::Shutdown;

use super::*;

/// Reads from a client until its end of file, the device working in between.
fn read_to_end(guest: &mut Guest, client: &mut UnixStream) -> usize {
    let mut got = 0;
    let mut out = vec![0; 1 << 16];
    loop {
        guest.run();
        match client.read(&mut out) {
            Ok(0) => return got,
            Ok(count) => got += count,
            Err(error) => panic!("{error} after {got} bytes"),
        }
    }
}

#[test]
fn bytes_go_both_ways_over_a_client_stream() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    client.write_all(b"to guest").unwrap();
    let packet = guest.take_one();
    assert_eq!((packet.op, packet.payload.as_slice()), (RW, &b"to guest"[..]));
    guest.send(wire.op(RW), b"to host");
    assert_eq!(read(&mut client), b"to host");
}

#[test]
fn bytes_sent_behind_the_connect_line_reach_the_guest() {
    let mut guest = Guest::with_buffers(8);
    let mut client = guest.client(b"CONNECT 1025\nNCS1abc");
    let request = guest.take_one();
    assert_eq!(request.op, REQUEST);
    guest.send(Wire::new(1025, request.host_port, RESPONSE), b"");
    assert_eq!(guest.take_one().payload, b"NCS1abc");
    assert!(read(&mut client).starts_with(b"OK "));
}

#[test]
fn guest_reaches_a_host_port_once() {
    let mut guest = Guest::with_buffers(8);
    let wire = guest.control_stream();
    guest.send(wire.op(RW), b"ready");
    assert_eq!(read(&mut guest.control), b"ready");
    guest.control.write_all(b"rpc").unwrap();
    assert_eq!(guest.take_one().payload, b"rpc");
    guest.send(Wire::new(5001, CONTROL_PORT, REQUEST), b"");
    let packet = guest.take_one();
    assert_eq!((packet.op, packet.guest_port), (RST, 5001));
    guest.send(wire.op(RW), b"still there");
    assert_eq!(read(&mut guest.control), b"still there");
}

#[test]
fn refused_client_sees_end_of_file() {
    let mut guest = Guest::with_buffers(8);
    let mut client = guest.client(b"CONNECT 99\n");
    let request = guest.take_one();
    guest.send(Wire::new(99, request.host_port, RST), b"");
    assert!(is_closed(&mut client));
    assert_eq!(guest.connections(), 0);
}

#[test]
fn large_transfer_to_the_guest_keeps_order_and_credit() {
    let mut guest = Guest::with_buffers(64);
    let (mut client, wire) = guest.stream();
    let window = 2000;
    guest.send(Wire { buf_alloc: window, ..wire.op(CREDIT_UPDATE) }, b"");
    let sent: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    client.write_all(&sent).unwrap();
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let before = got.len();
        got.extend(guest.take().into_iter().flat_map(|packet| packet.payload));
        assert!((1..=window as usize).contains(&(got.len() - before)), "{} at {before}", got.len() - before);
        let update = Wire { buf_alloc: window, fwd_cnt: got.len() as u32, ..wire.op(CREDIT_UPDATE) };
        guest.send(update, b"");
    }
    assert_eq!(got, sent);
}

#[test]
fn slow_host_gets_every_byte_and_the_guest_its_credit_back() {
    let mut guest = Guest::with_buffers(16);
    let (mut client, wire) = guest.stream();
    let chunk: Vec<u8> = (0..60_000u32).map(|n| (n % 253) as u8).collect();
    let mut sent = Vec::new();
    while sent.len() + chunk.len() <= BUF_ALLOC as usize {
        guest.send(wire.op(RW), &chunk);
        sent.extend_from_slice(&chunk);
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let part = read(&mut client);
        assert!(!part.is_empty(), "stalled at {}", got.len());
        got.extend(part);
        guest.run();
    }
    assert_eq!(got, sent);
    let last = guest.take().into_iter().rfind(|packet| packet.op == CREDIT_UPDATE).unwrap();
    assert!(sent.len() as u32 - last.fwd_cnt < BUF_ALLOC / 2);
    guest.send(wire.op(CREDIT_REQUEST), b"");
    assert_eq!(guest.take_one().fwd_cnt as usize, sent.len());
}

#[test]
fn guest_with_a_small_window_of_its_own_never_stalls() {
    let mut guest = Guest::with_buffers(16);
    let (mut client, wire) = guest.stream();
    let window = 64 * 1024;
    let (mut sent, mut known) = (0u32, 0u32);
    while sent < 4 << 20 {
        let piece = (window - (sent - known)).min(16 * 1024);
        assert!(piece > 0, "stalled at {sent}");
        guest.send(Wire { buf_alloc: window, ..wire.op(RW) }, &vec![1; piece as usize]);
        sent += piece;
        while !read(&mut client).is_empty() {
            guest.run();
        }
        known = guest.take().last().map_or(known, |packet| packet.fwd_cnt);
    }
}

#[test]
fn s27_guest_shutdown_after_bytes_ends_the_host_reader_after_all_bytes() {
    let mut guest = Guest::with_buffers(16);
    let (mut client, wire) = guest.stream();
    for _ in 0..4 {
        guest.send(wire.op(RW), &[7; 60_000]);
    }
    guest.send(wire.op(SHUTDOWN).flags(NO_SEND), b"");
    assert_eq!(read_to_end(&mut guest, &mut client), 240_000);
    // The other direction still works.
    client.write_all(b"answer").unwrap();
    let answer = guest.take().into_iter().find(|packet| packet.op == RW).unwrap();
    assert_eq!(answer.payload, b"answer");
}

#[test]
fn s27_host_half_close_ends_the_guest_reader_and_leaves_the_other_direction() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    client.write_all(b"last").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = guest.take();
    assert_eq!(packets.len(), 2);
    assert_eq!(packets[0].payload, b"last");
    assert_eq!((packets[1].op, packets[1].flags), (SHUTDOWN, NO_SEND));
    guest.send(wire.op(RW), b"reply");
    assert_eq!(read(&mut client), b"reply");
    // Both directions over: the stream is gone without a close of either application.
    guest.send(wire.op(SHUTDOWN).flags(NO_SEND), b"");
    let last = guest.take_one();
    assert_eq!((last.op, last.flags), (SHUTDOWN, NO_SEND | NO_RECEIVE));
    assert!(is_closed(&mut client));
    assert_eq!(guest.connections(), 0);
}

#[test]
fn s27_guest_close_delivers_pending_bytes_to_a_slow_host() {
    let mut guest = Guest::with_buffers(16);
    let (mut client, wire) = guest.stream();
    for _ in 0..4 {
        guest.send(wire.op(RW), &[9; 60_000]);
    }
    guest.send(wire.op(SHUTDOWN).flags(NO_SEND | NO_RECEIVE), b"");
    assert_eq!(guest.take().last().unwrap().op, RST);
    assert_eq!(guest.connections(), 1);
    assert_eq!(read_to_end(&mut guest, &mut client), 240_000);
    assert_eq!(guest.connections(), 0);
}

#[test]
fn s27_bytes_written_before_a_host_closes_reach_the_guest_before_the_end() {
    let mut guest = Guest::with_buffers(32);
    let (mut client, _wire) = guest.stream();
    client.write_all(&[5; 3000]).unwrap();
    drop(client);
    let packets = guest.take();
    let bytes: usize = packets.iter().map(|packet| packet.payload.len()).sum();
    assert_eq!(bytes, 3000);
    let last = packets.last().unwrap();
    assert_eq!((last.op, last.flags), (SHUTDOWN, NO_SEND | NO_RECEIVE));
    assert_eq!(guest.connections(), 0);
}

#[test]
fn s28_host_that_stops_reading_gives_the_guest_writer_an_end() {
    let mut guest = Guest::with_buffers(8);
    let (client, wire) = guest.stream();
    client.shutdown(Shutdown::Read).unwrap();
    guest.send(wire.op(RW), b"for nobody");
    let packet = guest.take_one();
    assert_eq!((packet.op, packet.flags), (SHUTDOWN, NO_RECEIVE));
    guest.send(wire.op(RW), b"under way");
    assert!(guest.take().is_empty());
}

#[test]
fn s27_guest_that_stops_reading_gives_the_host_writer_epipe() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    guest.send(wire.op(SHUTDOWN).flags(NO_RECEIVE), b"");
    assert_eq!(client.write(b"x").unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    guest.send(wire.op(RW), b"out");
    assert_eq!(read(&mut client), b"out");
}

#[test]
fn guest_hears_of_taken_packets_with_the_next_packet_or_a_little_later() {
    let mut guest = Guest::with_buffers(8);
    let (mut client, wire) = guest.stream();
    guest.driver.take_interrupt();
    guest.send(wire.op(RW), b"out");
    assert!(!guest.driver.take_interrupt());
    client.write_all(b"in").unwrap();
    guest.take();
    assert!(guest.driver.take_interrupt());
    guest.send(wire.op(RW), b"out");
    assert_eq!(guest.run(), Next::After(TX_NEWS));
    guest.worker.tx_news = guest.worker.tx_news.and_then(|since| since.checked_sub(TX_NEWS));
    guest.run();
    // The driver of this test asks for every interrupt by a used event that it never moves.
    assert_eq!(guest.worker.tx.unannounced(), 0);
}

#[test]
fn guest_hears_at_once_of_many_taken_packets() {
    let mut guest = Guest::with_buffers(8);
    let (_client, wire) = guest.stream();
    for _ in 0..QUEUE_SIZES[1] / 4 {
        guest.queue(wire.op(RW), b"x");
    }
    guest.run();
    assert_eq!(guest.worker.tx.unannounced(), 0);
}

#[test]
fn s27_rx_starvation_loses_nothing() {
    let mut guest = Guest::new();
    let mut client = guest.client(b"CONNECT 1025\nhello");
    assert!(guest.take().is_empty());
    guest.fill_rx(1);
    let request = guest.take_one();
    guest.send(Wire::new(1025, request.host_port, RESPONSE), b"");
    let mut bytes: Vec<u8> = guest.take().into_iter().flat_map(|packet| packet.payload).collect();
    client.write_all(b" again").unwrap();
    bytes.extend(guest.take().into_iter().flat_map(|packet| packet.payload));
    assert_eq!(bytes, b"hello again");
}

#[test]
fn device_serves_on_its_thread_and_survives_a_reset() {
    use crate::virtio::device::VirtioDevice;
    use crate::virtio::vsock::Vsock;

    let path = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(path.path().join("s")).unwrap();
    let mut vsock = Vsock::new(listener.into(), []).unwrap();
    for _ in 0..2 {
        let mut driver = Driver::new();
        let (mut rx, tx) = (driver.queue(QUEUE_SIZES[0]), driver.queue(QUEUE_SIZES[1]));
        let place = driver.place(4096);
        rx.add(&[(place, 4096, WRITE)]);
        vsock.activate(driver.activation(BASE_FEATURES, &[&rx, &tx])).unwrap();
        let mut client = UnixStream::connect(path.path().join("s")).unwrap();
        client.write_all(b"CONNECT 7\n").unwrap();
        while rx.used().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(driver.get(place + 30, 1), [REQUEST as u8]);
        vsock.reset();
        assert_eq!(client.read(&mut [0]).unwrap(), 0);
    }
}

proptest! {
    /// Random pieces in both directions at random times arrive whole and in order.
    #[test]
    fn streams_carry_random_pieces_in_order(
        steps in prop::collection::vec((prop::bool::ANY, 1usize..5000), 1..30),
    ) {
        let mut guest = Guest::with_buffers(128);
        let (mut client, wire) = guest.stream();
        let (mut sent_in, mut got_in, mut sent_out, mut got_out) = (vec![], vec![], vec![], vec![]);
        for (n, (inward, len)) in steps.into_iter().enumerate() {
            let piece: Vec<u8> = (0..len).map(|at| (at * 7 + n) as u8).collect();
            if inward {
                client.write_all(&piece).unwrap();
                sent_in.extend(piece);
            } else {
                let told = Wire { fwd_cnt: got_in.len() as u32, ..wire.op(RW) };
                guest.send(told, &piece);
                sent_out.extend(piece);
            }
            if n % 3 == 0 {
                got_out.extend(read(&mut client));
            }
            for packet in guest.take() {
                got_in.extend(packet.payload);
            }
        }
        got_out.extend(read(&mut client));
        prop_assert_eq!(got_in, sent_in);
        prop_assert_eq!(got_out, sent_out);
    }
}
