//! User, groups and capabilities, exactly as the configuration says (C08, C12).

use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set, configure_capability_in_ambient_set,
    remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};

use super::Child;
use super::error::StepError;
use crate::container::plan::CapabilityPlan;

/// Becomes the user, with the configuration's capabilities; and, where the filter comes without no_new_privs,
/// CAP_SYS_ADMIN until then ([`finish`]).
pub(super) fn drop_to(child: &mut Child) -> Result<(), StepError> {
    let known = limit_bounding(child.process.capabilities.bounding)?;
    let sets = known_only(&child.process.capabilities, known);
    child.process.capabilities = sets;

    let identity = child.identity()?;
    let error = |call| move |error| StepError::Call(call, error);
    set_keep_capabilities(true).map_err(error("keep capabilities"))?;
    let groups: Vec<Gid> = identity.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    set_thread_groups(&groups).map_err(error("set groups"))?;
    let gid = Some(Gid::from_raw(identity.gid));
    set_thread_res_gid(gid, gid, gid).map_err(error("set group"))?;
    let uid = Some(Uid::from_raw(identity.uid));
    set_thread_res_uid(uid, uid, uid).map_err(error("set user"))?;
    set_keep_capabilities(false).map_err(error("keep capabilities"))?;

    let extra = if needs_admin(child) { CapabilitySet::SYS_ADMIN.bits() } else { 0 };
    set_sets(&sets, extra)?;
    clear_ambient_capability_set().map_err(error("clear ambient capabilities"))?;
    for capability in each(sets.ambient) {
        configure_capability_in_ambient_set(capability, true).map_err(error("set ambient capabilities"))?;
    }
    Ok(())
}

/// The exact sets, for good.
pub(super) fn finish(child: &Child) -> Result<(), StepError> {
    if needs_admin(child) { set_sets(&child.process.capabilities, 0) } else { Ok(()) }
}

/// seccomp(2) wants no_new_privs or CAP_SYS_ADMIN.
fn needs_admin(child: &Child) -> bool {
    child.filter.is_some() && !child.process.no_new_privileges
}

fn set_sets(sets: &CapabilityPlan, extra: u64) -> Result<(), StepError> {
    let set = CapabilitySet::from_bits_retain;
    let sets = CapabilitySets {
        effective: set(sets.effective | extra),
        permitted: set(sets.permitted | extra),
        inheritable: set(sets.inheritable),
    };
    set_capabilities(None, sets).map_err(|error| StepError::Call("set capabilities", error))
}

/// Drops every other capability from the bounding set, and gives those that this kernel knows.
fn limit_bounding(bounding: u64) -> Result<u64, StepError> {
    let mut known = 0;
    for capability in each(u64::MAX) {
        if bounding & capability.bits() != 0 {
            // Asked for; whether the kernel knows it shows by the ones after it.
            known |= capability.bits();
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => known |= capability.bits(),
            Err(Errno::INVAL) => {
                // They are numbered without gaps.
                return Ok(known & (capability.bits() - 1));
            }
            Err(error) => return Err(StepError::Call("drop from the bounding set", error)),
        }
    }
    Ok(known)
}

/// A configuration may name capabilities of a newer kernel; nobody can have those here. Nor can an ambient one be
/// that is not permitted and inheritable, which configurations name all the same (`runc spec` did) and runc skips.
fn known_only(sets: &CapabilityPlan, known: u64) -> CapabilityPlan {
    CapabilityPlan {
        bounding: sets.bounding & known,
        effective: sets.effective & known,
        permitted: sets.permitted & known,
        inheritable: sets.inheritable & known,
        ambient: sets.ambient & sets.permitted & sets.inheritable & known,
    }
}

fn each(set: u64) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|at| 1 << at).filter(move |bit| set & bit != 0).map(CapabilitySet::from_bits_retain)
}
