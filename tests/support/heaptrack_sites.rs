//! What heaptrack recorded of each stack.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use crate::child::run;
use crate::workload::tool;

/// Calls on a stack, the innermost first: the module's file name, and the place of the call within its page, which
/// is the same wherever the module is mapped.
pub type Site = Vec<(String, u64)>;

/// Frames that heaptrack records of a stack at most: `Trace::MAX_SIZE`.
pub const MAX_FRAMES: usize = 64;

/// Bytes asked for at each stack, from a file that heaptrack has written. It is lines of a letter and hexadecimal
/// numbers that count things from 1 on in the order they come: `s` a string, `i` an address with its module, `t` a
/// stack's innermost address and the stack of the rest, `a` a size at a stack; `+` is one allocation of the n-th such,
/// counted from 0.
pub fn bytes_by_site(recording: &Path) -> HashMap<Site, u64> {
    let mut unpack = Command::new(tool("zstd", "zstd"));
    let text = run(unpack.args(["-dcq"]).arg(recording)).exited(0).output();
    let (mut strings, mut addresses, mut traces) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sizes, mut bytes) = (Vec::<(usize, u64)>::new(), HashMap::<usize, u64>::new());
    for line in text.lines() {
        let (kind, rest) = line.split_at_checked(1).unwrap_or(("", ""));
        let rest = rest.trim_start();
        let number = |word: &str| usize::from_str_radix(word, 16).expect("a number");
        let numbers = || rest.split(' ').map(number).collect::<Vec<_>>();
        match kind {
            "s" => strings.push(rest.split_once(' ').map_or("", |(_, text)| text)),
            "i" => addresses.push((numbers()[0] as u64, numbers().get(1).copied())),
            "t" => traces.push((numbers()[0], numbers()[1])),
            "a" => sizes.push((numbers()[1], numbers()[0] as u64)),
            "+" => {
                let (trace, size) = sizes[numbers()[0]];
                *bytes.entry(trace).or_default() += size;
            }
            _ => {}
        }
    }
    let site = |mut trace: usize| {
        let mut site = Site::new();
        while trace != 0 {
            let (address, parent) = traces[trace - 1];
            let (place, module) = addresses[address - 1];
            let module = module.map_or("", |module| strings[module - 1]);
            site.push((file_name(module), place & 0xfff));
            trace = parent;
        }
        site
    };
    let mut sites = HashMap::new();
    for (&trace, bytes) in &bytes {
        *sites.entry(site(trace)).or_default() += bytes;
    }
    sites
}

/// The last part of a path.
pub fn file_name(path: &str) -> String {
    path.rsplit('/').next().unwrap_or_default().to_owned()
}
