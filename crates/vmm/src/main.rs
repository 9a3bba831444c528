//! `nacre-vmm`: one process, one machine.
//!
//! Started with nothing but its control socket at descriptor 3; see `nacre_protocol::control` for what is spoken there.

use std::time::Instant;

fn main() {
    let begin = Instant::now();
    std::process::exit(nacre_vmm::run(begin).status());
}
