//! Compares, as text, the twins on which Rust and CUDA must agree.

use critbeta::cuda::internals::Variant;
use critbeta::cuda::internals::{self as params, AttentionParams, OnChipParams, RowParams};
use critbeta::cuda::{Contact, RowReport, SkipReport};
use critbeta::laws::LAWS;

fn kernels(file: &str) -> String {
    std::fs::read_to_string(format!("{}/kernels/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Reads the `type name, name[3], ..;` lines of a C struct as (name, type, bytes).
fn fields(text: &str, name: &str) -> Vec<(String, String, usize)> {
    let start = text.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("no struct {name}"));
    let body = text[start..].split_once('{').unwrap().1.split_once("};").unwrap().0;
    let mut fields = Vec::new();
    for line in body.lines() {
        let code = line.split("//").next().unwrap();
        let Some((code, _)) = code.split_once(';') else { continue };
        let (kind, names) = code.trim().split_once(' ').unwrap();
        let bytes = match kind {
            "u64" | "double" | "Contact" => 8,
            "u32" | "float" => 4,
            "AttentionParams" => size_of::<AttentionParams>(),
            "RowParams" => size_of::<RowParams>(),
            _ => panic!("{line}"),
        };
        for name in names.split(',').map(str::trim) {
            let (name, count) = match name.split_once('[') {
                Some((name, count)) => (name, count.trim_end_matches(']').parse().unwrap()),
                None => (name, 1),
            };
            fields.push((name.to_owned(), kind.to_owned(), bytes * count));
        }
    }
    fields
}

macro_rules! rust_fields {
    ($type:ident: $($field:ident),*) => {
        vec![$((stringify!($field), std::mem::offset_of!($type, $field))),*]
    };
}

fn assert_twins(text: &str, name: &str, size: usize, ours: Vec<(&str, usize)>) {
    let mut offset = 0;
    let theirs: Vec<(String, usize)> = fields(text, name)
        .into_iter()
        .map(|(field, _, bytes)| {
            offset += bytes;
            (field, offset - bytes)
        })
        .collect();
    let ours: Vec<(String, usize)> = ours.into_iter().map(|(field, at)| (field.to_owned(), at)).collect();
    assert_eq!(ours, theirs, "fields and offsets of {name}");
    assert_eq!(size, offset, "size of {name}");
}

#[test]
fn params_are_twins() {
    let text = kernels("params.cuh");
    let ours = rust_fields!(RowParams: scores, out, lens, betas, positions, report, betas_out, workspace,
        score_stride, out_stride, p, resolve, excess, rows, cols, ctas, resident, groups, out_f32, rule, law,
        top_k, both, exceeding, sums, out_streamed, out_open);
    assert_twins(&text, "RowParams", size_of::<RowParams>(), ours);
    assert_twins(&text, "Contact", size_of::<Contact>(), rust_fields!(Contact: gap, rank));
    let ours = rust_fields!(RowReport: max, second, len, ties, argmax, poisoned, critical, resolved, kth_gap,
        reserved, beta, sum, gap_sum);
    assert_twins(&text, "RowReport", size_of::<RowReport>(), ours);
    let of_attention = kernels("attention/params.cuh");
    let ours = rust_fields!(AttentionParams: queries, keys, table, lens, starts, scores, row_lens,
        positions, values, out, partials, arrivals, masses, histogram, skips, audits, betas_out,
        query_token, query_head, key_page, key_slot, key_head, value_page, value_slot, value_head,
        out_token, out_head, table_stride, score_stride, mass_stride, scale, softcap, p, token_first,
        token_count, seq_first, seqs, kv_heads, group, dim, page, pages, query_len, max_len, cols, splits,
        value_dim, out_f32, chunks, value_rows, budget, page_factor, page_shift, rule, law, padding,
        repairs);
    let of_skips = rust_fields!(SkipReport: dropped, unread, keys, repaired);
    assert_twins(&of_attention, "SkipReport", size_of::<SkipReport>(), of_skips);
    let of_chip = rust_fields!(OnChipParams: attention, rows, rows_at, shift);
    assert_twins(&of_attention, "OnChipParams", size_of::<OnChipParams>(), of_chip);
    let bytes = size_of::<AttentionParams>();
    assert_twins(&of_attention, "AttentionParams", bytes, ours);
    assert!(of_attention.contains(&format!("static_assert(sizeof(AttentionParams) == {bytes},")));
    for (name, bytes) in [("RowParams", size_of::<RowParams>()), ("RowReport", size_of::<RowReport>())] {
        assert!(text.contains(&format!("static_assert(sizeof({name}) == {bytes},")), "{name}");
    }
}

#[test]
fn constants_are_twins() {
    let text = kernels("params.cuh") + &kernels("attention/params.cuh");
    let parse = |line: &str| {
        let (name, value) = line.strip_prefix("constexpr u32 ")?.split_once(';')?.0.split_once(" = ")?;
        Some((name.to_owned(), value.parse::<u32>().unwrap_or_else(|e| panic!("{line}: {e}"))))
    };
    let theirs: Vec<(String, u32)> = text.lines().filter_map(parse).collect();
    macro_rules! ours {
        ($($name:ident),*) => { vec![$((stringify!($name).to_owned(), params::$name)),*] };
    }
    let ours = ours![
        WARP_BINS,
        BINS,
        SPLIT_BINS,
        WARP_CANDIDATES,
        CANDIDATES,
        SPLIT_CANDIDATES,
        WARP_CONTROL_BYTES,
        BLOCK_CONTROL_BYTES,
        CLUSTER_CONTROL_BYTES,
        WIDE_CLUSTER_CONTROL_BYTES,
        SPLIT_CONTROL_BYTES,
        SPLIT_CTAS,
        SLOT_BYTES,
        GROUP_BYTES,
        RULE_FIXED,
        RULE_ARRAY,
        RULE_LAW,
        RULE_CRITICAL,
        RULE_CALIBRATED,
        UNIT,
        QUERY_ROWS,
        WIDE_QUERY_ROWS,
        VALUE_THREADS,
        VALUE_ROWS,
        CHUNKS,
        VALUE_BLOCK,
        VALUE_BYTES_OF_ROW,
        VALUE_BYTES_OF_ELEMENT,
        VALUE_BYTES,
        ONE_PASS_BYTES,
        ALLOWANCE,
        MASS_BINS
    ];
    assert_eq!(ours, theirs);
}

/// rule.cuh names each law's case in a comment, in the order of the registry.
#[test]
fn laws_are_twins() {
    let text = kernels("rule.cuh");
    let (_, cases) = text.split_once("switch (law)").unwrap();
    let entropy = LAWS.iter().position(|law| law.needs_entropy).unwrap();
    assert!(text.contains(&format!("LAW_VELICKOVIC = {entropy};")));
    assert_eq!(LAWS.iter().filter(|law| law.needs_entropy).count(), 1);
    for (i, law) in LAWS.iter().enumerate() {
        assert!(law.parameters.len() <= 3, "{}", law.name);
        let case = match i {
            _ if law.needs_entropy => "case LAW_VELICKOVIC".to_owned(),
            _ if i == LAWS.len() - 1 => "default".to_owned(),
            _ => format!("case {i}:"),
        };
        let line = cases.lines().find(|line| line.contains(&case)).unwrap_or_else(|| panic!("no {case}"));
        let name = line.split_once("//").map(|(_, name)| name.trim());
        assert!(name.is_none_or(|name| name == law.name), "{line}: {}", law.name);
    }
}

#[test]
fn variants_are_the_rows_of_the_table() {
    let table = kernels("variants.def");
    let rows: Vec<&str> = table.lines().filter(|line| line.contains('(') && line.ends_with(')')).collect();
    let rows: Vec<&str> = rows.into_iter().filter(|row| !row.starts_with(['#', '/'])).collect();
    assert_eq!(rows.len(), Variant::ALL.len());
    for (i, (row, &variant)) in rows.iter().zip(Variant::ALL).enumerate() {
        assert_eq!(variant as usize, i);
        let (family, rest) = row.split_once('(').unwrap();
        let parts: Vec<&str> = rest.trim_end_matches(')').split(", ").collect();
        let symbol = format!("{}_{}_{}{}x{}", family.to_lowercase(), parts[0], parts[1], parts[2], parts[3]);
        assert_eq!(variant.symbol(), symbol);
        assert_eq!(variant.dtype().name(), parts[0]);
        assert_eq!(
            (variant.threads().to_string(), variant.ctas().to_string()),
            (parts[2].into(), parts[3].into())
        );
    }
}

/// The launch bounds of kernels/verbs.cuh, which decide how many registers a thread may have.
#[test]
fn plans_count_registers_as_kernels_are_compiled() {
    let text = kernels("verbs.cuh");
    let rule =
        "return (SIMT_TUNED || threads_per_sm == 512 ? threads_per_sm : threads_per_sm - 256) / threads;";
    assert!(text.contains("if (threads > 256) return 1;") && text.contains(rule), "resident_ctas");
    for (scope, [with, without]) in params::RESIDENT_THREADS {
        let stamp = format!("#define STAMP_{}(", format!("{scope:?}").to_lowercase());
        let body = text.split_once(&stamp).unwrap().1;
        let bound = body.split_once("resident_ctas(THREADS, ").unwrap().1.split_once(')').unwrap().0;
        let expected = if with == without { with.to_string() } else { format!("OUT ? {with} : {without}") };
        assert_eq!(bound, expected, "{stamp}");
    }
}
