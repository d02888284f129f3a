//! What a gateway or a controller says over a link: no bytes break the reader, and what is read is written alike.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use muster_shared::link::{Ask, Message, Tell};

fuzz_target!(|bytes: &[u8]| {
    check::<Ask>(bytes);
    check::<Tell>(bytes);
});

fn check<M: Message + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Ok(message) = M::read(bytes) else { return };
    let mut written = BytesMut::new();
    message.write(&mut written);
    assert_eq!(M::read(&written).expect("our own words"), message);
}
