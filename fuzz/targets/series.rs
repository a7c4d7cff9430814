#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cdal_fuzz::let_panics_be_contained();
    cdal_fuzz::series(bytes);
});
