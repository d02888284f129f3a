//! Bodies of the Open Inference Protocol: no bytes break the reader, and what is read survives in binary form.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use muster_shared::tensor::http::{Form, Wanted, read_request, read_response, write_request, write_response};

fuzz_target!(|input: (&[u8], Option<u16>)| {
    let (bytes, length) = input;
    let (body, length) = (Bytes::copy_from_slice(bytes), length.map(usize::from));
    if let Ok((request, _)) = read_request("m", None, body.clone(), length) {
        let written = write_request(&request, Form::Binary).expect("binary data can say everything");
        let length = written.header_length();
        let (read, wanted) = read_request("m", None, written.into_bytes(), length).expect("our own words");
        assert_eq!(read, request);
        assert!(wanted.outputs.is_empty(), "all outputs are wanted in one form");
        let _ = write_request(&request, Form::Json);
    }
    if let Ok(response) = read_response(body, length) {
        let written = write_response(&response, &Wanted::all(Form::Binary)).expect("binary data can say everything");
        let length = written.header_length();
        assert_eq!(read_response(written.into_bytes(), length).expect("our own words"), response);
        let _ = write_response(&response, &Wanted::default());
    }
});
