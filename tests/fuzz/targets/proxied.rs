//! Whatever a proxy sends first, reading its header ends, within its bound, and what is known by then
//! does not change with what comes behind it.
#![no_main]

use aryeo_relay::domain::limit::PROXY_HEADER_BYTES_MAX;
use aryeo_relay::domain::proxied::{Proxied, Step, is_header, step};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Some((proxied, taken)) = read(bytes) else { return };
    let header = &bytes[..taken];
    assert!(is_header(header), "{header:?} is taken for a header and not known as one");
    assert_eq!(read(header), Some((proxied, taken)), "what comes behind it changes it");
    assert_eq!(read(&header[..taken - 1]), None, "it is read before it is complete");
});

/// As a connection does; also, how much of it was read.
fn read(bytes: &[u8]) -> Option<(Proxied, usize)> {
    let mut taken = 0;
    loop {
        match step(&bytes[..taken]).ok()? {
            Step::Done(proxied) => return Some((proxied, taken)),
            Step::More(more) => {
                assert!(more > 0, "nothing more is wanted, and it is not done");
                taken += more;
                assert!(taken <= PROXY_HEADER_BYTES_MAX, "{taken} bytes are wanted");
                if taken > bytes.len() {
                    return None;
                }
            }
        }
    }
}
