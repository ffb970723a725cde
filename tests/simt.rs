//! Tests the checker of the simulator (kernels/simt). It finds every planted fault under every thread order,
//! and nothing in the corrected twin. scripts/simt-check.sh runs the same tests with sanitizers in the
//! simulator.

// Planted faults are not part of the library, so this test calls the C functions of the simulator.
#![allow(unsafe_code)]

#[cfg(not(critbeta_simulator))]
#[test]
fn planted_faults_are_found_and_their_mended_twins_are_not() {
    eprintln!(
        "skipped planted_faults_are_found_and_their_mended_twins_are_not: no C++ compiler made the simulator"
    );
}

#[cfg(critbeta_simulator)]
mod simulator {
    use critbeta::cuda::internals::Variant;
    use std::collections::BTreeSet;
    use std::ffi::{CStr, c_char};
    use std::{ptr, thread};

    /// Twin of `SimtLaunch` in kernels/simt/scheduler.hpp.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Launch {
        variant: u32,
        grid: u32,
        cluster_ctas: u32,
        shared_bytes: u32,
        seed: u64,
        buffers: *const u64,
        buffer_count: u64,
        params: *const u64,
        shadow: u32,
        reserved: u32,
    }

    /// Twin of `SimtOutcome` in kernels/simt/scheduler.hpp.
    #[repr(C)]
    struct Outcome {
        load_bytes: u64,
        store_bytes: u64,
        switches: u64,
        looks: [u64; 10],
        waits: [u64; 5],
        faults: u32,
        reserved: u32,
        message: [u8; 1000],
    }

    const NOTHING: Outcome = Outcome {
        load_bytes: 0,
        store_bytes: 0,
        switches: 0,
        looks: [0; 10],
        waits: [0; 5],
        faults: 0,
        reserved: 0,
        message: [0; 1000],
    };

    impl Outcome {
        fn message(&self) -> String {
            let text = self.message.split(|&byte| byte == 0).next().unwrap();
            String::from_utf8(text.to_vec()).unwrap()
        }
    }

    unsafe extern "C" {
        fn critbeta_simt_launch(launch: *const Launch, outcome: *mut Outcome) -> i32;
        fn critbeta_simt_fault(index: u32, seed: u64, shadow: u32, outcome: *mut Outcome) -> i32;
        fn critbeta_simt_fault_name(index: u32) -> *const c_char;
        fn critbeta_simt_kernel_name(variant: u32) -> *const c_char;
    }

    /// The names in a table of the simulator, for 0, 1, .. until there are no more.
    fn names(of: unsafe extern "C" fn(u32) -> *const c_char) -> Vec<&'static str> {
        // SAFETY: the function takes any number and returns null or a string literal.
        let name = |index| unsafe {
            Some(of(index)).filter(|name| !name.is_null()).map(|name| CStr::from_ptr(name))
        };
        (0..).map_while(name).map(|name| name.to_str().unwrap()).collect()
    }

    /// The message of the simulator for a planted fault, if it found one, and how often threads took turns
    /// until then.
    fn found(index: u32, seed: u64, shadow: u32) -> (Option<String>, u64) {
        let mut outcome = NOTHING;
        // SAFETY: the outcome lives through the call and has the simulator's layout.
        let status = unsafe { critbeta_simt_fault(index, seed, shadow, &mut outcome) };
        assert_eq!(status, outcome.faults as i32, "fault {index}, seed {seed}");
        ((status != 0).then(|| outcome.message()), outcome.switches)
    }

    #[test]
    fn planted_faults_are_found_and_their_mended_twins_are_not() {
        let names = names(critbeta_simt_fault_name);
        assert!(names.len() >= 32, "{names:?}");
        for (index, name) in (0..).zip(names) {
            let (_, says) = name.rsplit_once(": ").unwrap();
            for seed in 0..10 {
                let case = format!("{name}, seed {seed}");
                let first = found(index, seed, 1);
                assert_eq!(found(index, seed, 1), first, "{case}: not the same twice");
                match first.0 {
                    None => assert_eq!(says, "clean", "{case}: not found"),
                    Some(message) => {
                        assert_ne!(says, "clean", "{case}: {message}");
                        assert!(message.contains(says), "{case}: {message}");
                        assert!(message.contains("faults.cu:"), "{case}: no line in {message}");
                    }
                }
            }
        }
    }

    #[test]
    fn bounds_rights_and_divergence_need_no_shadow() {
        let names = names(critbeta_simt_fault_name);
        let kinds = [
            "past its slice",
            "past its buffer",
            "read-only buffer",
            "divergence",
            "returned",
            "remote access",
        ];
        let without: Vec<u32> =
            (0..).zip(&names).filter(|(_, n)| kinds.iter().any(|k| n.ends_with(k))).map(|(i, _)| i).collect();
        assert_eq!(without.len(), 7, "{names:?}");
        for index in without {
            for seed in 0..10 {
                assert!(found(index, seed, 0).0.is_some(), "{}, seed {seed}", names[index as usize]);
            }
        }
    }

    #[test]
    fn thread_orders_differ_from_seed_to_seed() {
        let messages: BTreeSet<String> = (0..20).filter_map(|seed| found(0, seed, 1).0).collect();
        let who = |message: &String| message.split_once("): ").map(|(_, rest)| rest.to_owned());
        let distinct: BTreeSet<_> = messages.iter().map(who).collect();
        assert!(distinct.len() >= 15, "20 seeds reach the race in {} orders: {distinct:?}", distinct.len());
    }

    #[test]
    fn os_threads_simulate_at_once() {
        let alone: Vec<_> = (0..8).map(|index| found(2 * index, 3, 1)).collect();
        thread::scope(|scope| {
            let work = || (0..8).map(|index| found(2 * index, 3, 1)).collect::<Vec<_>>();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            for thread in threads {
                assert_eq!(thread.join().unwrap(), alone);
            }
        });
    }

    #[test]
    fn launches_that_a_gpu_would_refuse_are_refused() {
        let symbols = names(critbeta_simt_kernel_name);
        let variant = symbols.iter().position(|&symbol| symbol == "wrappers_f32_cluster64x1").unwrap() as u32;
        let answer = |launch: &Launch| {
            let mut outcome = NOTHING;
            // SAFETY: both live through the call and have the layout of the simulator, and no kernel has a
            // buffer to write.
            let status = unsafe { critbeta_simt_launch(launch, &mut outcome) };
            assert_eq!(outcome.faults, u32::from(status == 1));
            (status, outcome.message())
        };
        let params = [0; 20];
        let runs = Launch {
            variant,
            grid: 2,
            cluster_ctas: 2,
            shared_bytes: 2048,
            seed: 0,
            buffers: ptr::null(),
            buffer_count: 0,
            params: params.as_ptr(),
            shadow: 0,
            reserved: 0,
        };
        let (status, message) = answer(&runs);
        assert!(status == 1 && message.contains("global address outside every buffer"), "{message}");
        for (launch, says) in [
            (Launch { variant: 1_000_000, ..runs }, "no such variant: 1000000"),
            (Launch { cluster_ctas: 0, ..runs }, "a cluster of 0 CTAs; 1 to 16"),
            (Launch { cluster_ctas: 17, grid: 17, ..runs }, "a cluster of 17 CTAs; 1 to 16"),
            (Launch { grid: 0, ..runs }, "a grid of 0 CTAs"),
            (Launch { grid: 3, ..runs }, "a grid of 3 CTAs is no multiple of its cluster of 2"),
            (Launch { shared_bytes: 300_000, ..runs }, "300000 bytes of shared memory"),
            (Launch { shared_bytes: 2040, ..runs }, "a multiple of 16"),
            (Launch { params: ptr::null(), ..runs }, "params is null"),
            (Launch { buffer_count: 2, ..runs }, "buffers is null, of 2"),
        ] {
            let (status, message) = answer(&launch);
            assert!(status == 2 && message.contains(says), "{status} and {message:?}, not {says:?}");
        }
    }

    /// The simulator gets a `Variant` as its number.
    #[test]
    fn variants_have_the_numbers_of_the_simulator() {
        let symbols: Vec<&str> = Variant::ALL.iter().map(|variant| variant.symbol()).collect();
        assert_eq!(names(critbeta_simt_kernel_name), symbols);
    }
}
