use super::*;

#[test]
fn every_kind_compiles() {
    for kind in ThreadKind::ALL {
        assert!(!program::allow(lists::of(kind)).unwrap().is_empty(), "{kind:?}");
    }
}

#[test]
fn no_list_reaches_a_path_a_new_socket_or_a_program() {
    let banned = [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_creat,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_bpf,
        libc::SYS_kill,
    ];
    for kind in ThreadKind::ALL {
        for allowed in lists::of(kind).iter().flat_map(|list| list.iter()) {
            assert!(
                !banned.contains(&libc::c_long::from(allowed.number)),
                "{kind:?} may call {}",
                allowed.number
            );
        }
    }
}

#[test]
fn devices_list_holds_every_other_list() {
    let devices: Vec<_> = lists::of(ThreadKind::Devices).iter().flat_map(|list| list.iter()).collect();
    for kind in ThreadKind::ALL {
        for allowed in lists::of(kind).iter().flat_map(|list| list.iter()) {
            assert!(devices.contains(&allowed), "{kind:?} {allowed:?}");
        }
    }
}

#[test]
fn only_the_maker_of_threads_may_clone() {
    for kind in ThreadKind::ALL {
        let clones = lists::of(kind)
            .iter()
            .flat_map(|list| list.iter())
            .any(|allowed| matches!(libc::c_long::from(allowed.number), libc::SYS_clone | libc::SYS_clone3));
        assert_eq!(clones, kind == ThreadKind::Devices, "{kind:?}");
    }
}
