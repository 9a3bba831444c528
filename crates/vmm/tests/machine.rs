//! Whole machines of a few instructions on the real `/dev/kvm`, in the real process.
//!
//! A software back-end runs these as well; nothing here boots a kernel.

#![allow(clippy::unwrap_used, reason = "a test's helper fails the test")]

use std::fs::File;
use std::path::Path;

use nacre_protocol::control::{Event, ExitReason, Failure, FailureKind, FromVmm, Reply, Request};
use nacre_protocol::vm::FdIndex;

mod owner;

use owner::kernel::{RESET, SPIN, TRIPLE_FAULT, file, kernel, print};
use owner::{Owner, Setup, read_all};

fn vmm() -> Owner {
    Owner::spawn(Path::new(env!("CARGO_BIN_EXE_nacre-vmm")))
}

fn setup(code: &[u8]) -> Setup {
    Setup::new(kernel(code), file(b"initramfs"))
}

/// Runs the code until the guest is over. Returns its serial text, the reason and the process's status.
fn run(code: &[u8]) -> (String, Option<ExitReason>, Option<i32>) {
    let mut vmm = vmm();
    let (reply, serial, _agent) = vmm.start(setup(code));
    assert!(matches!(reply, Ok(Reply::Started(_))), "{reply:?}");
    let text = read_all(serial);
    let (reason, status) = vmm.wait();
    (text, reason, status.code())
}

fn start_failure(setup: Setup) -> (Failure, Option<i32>) {
    let mut vmm = vmm();
    let (reply, _serial, _agent) = vmm.start(setup);
    let (reason, status) = vmm.wait();
    assert_eq!(reason, None);
    (reply.unwrap_err(), status.code())
}

#[test]
fn guest_prints_and_resets() {
    let code = [print("hello\n"), RESET.to_vec()].concat();
    assert_eq!(run(&code), ("hello\n".into(), Some(ExitReason::GuestReset), Some(0)));
}

#[test]
fn line_without_an_end_is_not_lost() {
    let code = [print("panic: no newline"), RESET.to_vec()].concat();
    assert_eq!(run(&code).0, "panic: no newline");
}

#[test]
fn s37_triple_fault_is_a_reset() {
    let code = [print("x\n"), TRIPLE_FAULT.to_vec()].concat();
    assert_eq!(run(&code), ("x\n".into(), Some(ExitReason::GuestReset), Some(0)));
}

#[test]
fn s35_every_port_can_be_read_and_written() {
    // ecx counts ports up: in al, dx; xor eax, eax; out dx, al. Widths 1, 2 and 4.
    let sweep = |read: &[u8], write: &[u8]| {
        let mut code = vec![0x31, 0xd2]; // xor edx, edx
        let begin = code.len();
        code.extend(read);
        code.extend([0x31, 0xc0]); // xor eax, eax
        code.extend(write);
        code.extend([0x81, 0xc2, 0x11, 0, 0, 0]); // add edx, 17
        code.extend([0x81, 0xfa, 0, 0, 1, 0]); // cmp edx, 0x10000
        let back = begin as i8 - (code.len() + 2) as i8;
        code.extend([0x72, back as u8]); // jb
        code
    };
    let code = [
        sweep(&[0xec], &[0xee]),
        sweep(&[0x66, 0xed], &[0x66, 0xef]),
        sweep(&[0xed], &[0xef]),
        print("swept\n"),
        RESET.to_vec(),
    ]
    .concat();
    let (text, reason, status) = run(&code);
    assert!(text.ends_with("swept\n"), "{text:?}");
    assert_eq!((reason, status), (Some(ExitReason::GuestReset), Some(0)));
}

#[test]
fn s35_absent_ports_and_memory_read_as_ones() {
    // A port, then an address of the MMIO hole beyond the slots: '1' for all ones, '0' for else.
    let verdict: &[u8] = &[
        0x0f, 0x94, 0xc0, // sete al
        0x04, b'0', // add al, '0'
        0x66, 0xba, 0xf8, 0x03, 0xee, // out 0x3f8, al
    ];
    let port: &[u8] = &[0x66, 0xba, 0x34, 0x12, 0xed, 0x83, 0xf8, 0xff]; // in eax, 0x1234; cmp eax, -1
    // The page tables map the first GiB only: a table for 3 to 4 GiB at 0xc000, with two pages of 2 MiB.
    let store = |at: u32, value: u32| {
        let (at, value) = (at.to_le_bytes(), value.to_le_bytes());
        // mov eax, value; mov ebx, at; mov [rbx], rax
        [&[0xb8][..], &value, &[0xbb], &at, &[0x48, 0x89, 0x03]].concat()
    };
    let map_hole = [
        store(0xc000 + 8 * 128, 0xd000_0083),
        store(0xc000 + 8 * 256, 0xe000_0083),
        store(0xa000 + 8 * 3, 0xc003),
    ]
    .concat();
    let absent: &[u8] = &[
        0xbb, 0, 0, 0, 0xe0, // mov ebx, 0xe0000000
        0xc7, 0x03, 1, 0, 0, 0, // mov dword [rbx], 1
        0x8b, 0x03, // mov eax, [rbx]
        0x83, 0xf8, 0xff, // cmp eax, -1
    ];
    let slot: &[u8] = &[
        0xbb, 0, 0, 0, 0xd0, // mov ebx, 0xd0000000
        0x8b, 0x03, // mov eax, [rbx]: MagicValue
        0x3d, 0x76, 0x69, 0x72, 0x74, // cmp eax, 0x74726976
    ];
    let code = [port, verdict, &map_hole, absent, verdict, slot, verdict, &print("\n"), &RESET].concat();
    assert_eq!(run(&code).0, "111\n");
}

#[test]
fn s38_spinning_guest_is_paused_asked_and_stopped() {
    let mut vmm = vmm();
    let (reply, _serial, _agent) = vmm.start(setup(&SPIN));
    assert!(matches!(reply, Ok(Reply::Started(_))), "{reply:?}");
    for _ in 0..20 {
        assert_eq!(vmm.request(Request::Pause, &[]), Ok(Reply::Done));
        assert_eq!(vmm.request(Request::Pause, &[]), Ok(Reply::Done));
        // A thread that has stopped the guest may still be on its way to sleep.
        let settled = (0..100).map(|_| stats(&mut vmm).vcpu_cpu_us).collect::<Vec<_>>();
        assert!(settled.windows(2).any(|pair| pair[0] == pair[1]), "{settled:?}");
        assert_eq!(vmm.request(Request::Resume, &[]), Ok(Reply::Done));
    }
    assert_eq!(vmm.request(Request::Stop, &[]), Ok(Reply::Done));
    let (reason, status) = vmm.wait();
    assert_eq!((reason, status.code()), (Some(ExitReason::Stopped), Some(0)));
}

fn stats(vmm: &mut Owner) -> nacre_protocol::control::VmStats {
    match vmm.request(Request::Stats, &[]) {
        Ok(Reply::Stats(stats)) => stats,
        other => panic!("no statistics: {other:?}"),
    }
}

#[test]
fn statistics_count_exits_and_pages() {
    let mut vmm = vmm();
    let (_, serial, _agent) = vmm.start(setup(&[print("ready\n"), SPIN.to_vec()].concat()));
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(serial), &mut line).unwrap();
    let stats = stats(&mut vmm);
    assert_eq!((line.as_str(), stats.pio_exits), ("ready\n", 6));
    assert!((1 << 12..16 << 20).contains(&stats.memory_resident_bytes), "{stats:?}");
    assert_eq!(vmm.hang_up().code(), Some(0));
}

#[test]
fn paused_machine_can_be_stopped() {
    let mut vmm = vmm();
    let _ends = vmm.start(setup(&SPIN));
    assert_eq!(vmm.request(Request::Pause, &[]), Ok(Reply::Done));
    assert_eq!(vmm.request(Request::Stop, &[]), Ok(Reply::Done));
    assert_eq!(vmm.wait().0, Some(ExitReason::Stopped));
}

#[test]
fn owner_that_dies_takes_the_machine_with_it() {
    let mut vmm = vmm();
    let _ends = vmm.start(setup(&SPIN));
    assert_eq!(vmm.hang_up().code(), Some(0));
}

#[test]
fn owner_that_dies_before_the_start_ends_the_process() {
    assert_eq!(vmm().hang_up().code(), Some(0));
}

#[test]
fn requests_that_do_not_fit_the_state_are_refused() {
    let mut vmm = vmm();
    let early = vmm.request(Request::Stats, &[]).unwrap_err();
    assert_eq!(early.kind, FailureKind::State);
    let _ends = vmm.start(setup(&SPIN));
    for request in
        [Request::Unplug { slot: 0 }, Request::Unplug { slot: 99 }, Request::ResizeBalloon { target_mib: 1 }]
    {
        assert_eq!(vmm.request(request.clone(), &[]).unwrap_err().kind, FailureKind::State, "{request:?}");
    }
    let second = vmm.request(Request::Start(Box::new(setup(&SPIN).config)), &[]).unwrap_err();
    assert_eq!(second.kind, FailureKind::State);
}

#[test]
fn malformed_request_does_not_harm_the_machine() {
    let mut vmm = vmm();
    let _ends = vmm.start(setup(&SPIN));
    vmm.send(b"{\"id\":5,\"request\":{\"op\":\"run\"}}", &[]);
    assert!(matches!(vmm.receive(), Some(FromVmm::Reply { id: 0, result: Err(_) })));
    assert_eq!(vmm.request(Request::Resume, &[]), Ok(Reply::Done));
}

#[test]
fn disk_is_plugged_into_the_placeholder_and_taken_out() {
    let mut vmm = vmm();
    let mut machine = setup(&SPIN);
    machine.config.hotplug_slots = 1;
    let (reply, _serial, _agent) = vmm.start(machine);
    assert!(reply.is_ok(), "{reply:?}");
    let disk = file(&[0; 4096]);
    let plug = |length_bytes| {
        let extents = vec![nacre_protocol::vm::Extent { file: FdIndex(0), length_bytes }];
        Request::PlugDisk(nacre_protocol::vm::DiskConfig { id: "d".into(), extents, read_only: true })
    };
    let fd = std::os::fd::AsFd::as_fd(&disk);
    assert_eq!(vmm.request(plug(4096), &[]).unwrap_err().kind, FailureKind::Invalid);
    assert_eq!(vmm.request(plug(8192), &[fd]).unwrap_err().kind, FailureKind::Device);
    // Slot 0 is the vsock device's.
    for _ in 0..100 {
        assert_eq!(vmm.request(plug(4096), &[fd]), Ok(Reply::Plugged { slot: 1 }));
        assert_eq!(vmm.request(plug(4096), &[fd]).unwrap_err().kind, FailureKind::State);
        assert_eq!(vmm.request(Request::Unplug { slot: 1 }, &[]), Ok(Reply::Done));
    }
}

#[test]
fn descriptor_that_is_not_kvm_is_refused() {
    let mut machine = setup(&SPIN);
    machine.fds[0] = File::open("/dev/null").unwrap().into();
    let (failure, status) = start_failure(machine);
    assert_eq!((failure.kind, status), (FailureKind::Kvm, Some(1)));
}

#[test]
fn broken_kernel_is_refused() {
    let machine = Setup::new(file(&[0; 5000]), file(b"initramfs"));
    let (failure, status) = start_failure(machine);
    assert_eq!((failure.kind, status), (FailureKind::Image, Some(1)));
    assert!(failure.message.contains("not an x86_64 ELF image"), "{}", failure.message);
}

#[test]
fn empty_initramfs_is_refused() {
    let (failure, _) = start_failure(Setup::new(kernel(&SPIN), file(b"")));
    assert_eq!(failure.kind, FailureKind::Image);
    assert!(failure.message.starts_with("initramfs"), "{}", failure.message);
}

#[test]
fn missing_descriptor_is_refused() {
    let mut machine = setup(&SPIN);
    machine.config.serial = FdIndex(77);
    let (failure, status) = start_failure(machine);
    assert_eq!((failure.kind, status), (FailureKind::Invalid, Some(1)));
}

#[test]
fn process_without_a_control_socket_says_so() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_nacre-vmm")).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("descriptor 3"), "{text}");
}

#[test]
fn events_name_the_reason_before_the_end() {
    let mut vmm = vmm();
    let (_, serial, _agent) = vmm.start(setup(&RESET));
    read_all(serial);
    assert!(matches!(vmm.receive(), Some(FromVmm::Event(Event::Exited(ExitReason::GuestReset)))));
    assert!(vmm.receive().is_none());
}
