// The C test program: rows on a device, pages on the CPU, structs of other versions, hostile arguments.
//
//     check [DEVICE]       cpu by default; simt runs the rows on the simulator of a GPU
#include "check.h"

enum { ROWS = 5, COLS = 300, KNOWN = sizeof(critbeta_row_report) / sizeof(double) };

static critbeta_engine *engine;
static int on_gpu;

static DLTensor floats(float *data, int64_t *shape) { return tensor(data, kDLFloat, 32, 2, shape); }

static void draw(float *scores, size_t n) {
    uint64_t state = 7;
    for (size_t i = 0; i < n; i++) scores[i] = (float)(random_(&state) % 4096) / 512.0f;
    scores[3] = -INFINITY;
}

// Reads the reports of a call, which a GPU writes in its own form.
static void reports_of(void *raw, double resolve, critbeta_row_report *found) {
    if (!on_gpu) {
        memcpy(found, raw, ROWS * sizeof *found);
        return;
    }
    int64_t from[] = {ROWS, CRITBETA_DEVICE_REPORT_BYTES}, to[] = {ROWS, KNOWN};
    DLTensor a = tensor(raw, kDLUInt, 8, 2, from), b = tensor(found, kDLFloat, 64, 2, to);
    CHECK(critbeta_decode_reports(&a, resolve, &b) == CRITBETA_OK);
}

static void rows(void) {
    float scores[ROWS * COLS], out[ROWS * COLS];
    double weights[COLS], raw[ROWS * KNOWN];
    int32_t lens[ROWS] = {COLS, 0, 1, 17, COLS - 1};
    critbeta_row_report found[ROWS];
    int64_t block[] = {ROWS, COLS}, one[] = {ROWS};
    int64_t report_shape[] = {ROWS, on_gpu ? CRITBETA_DEVICE_REPORT_BYTES : KNOWN};
    draw(scores, ROWS * COLS);
    DLTensor s = floats(scores, block), o = floats(out, block), l = tensor(lens, kDLInt, 32, 1, one);
    DLTensor r = tensor(raw, on_gpu ? kDLUInt : kDLFloat, on_gpu ? 8 : 64, 2, report_shape);
    critbeta_rule *rule = NULL;
    CHECK(critbeta_rule_parse("critical:ratio=1.5,cap=40", NULL, 0, 0, &rule) == CRITBETA_OK);

    critbeta_problem problem = {.size = sizeof problem, .rows = ROWS, .cols = COLS, .dtype = s.dtype};
    uint64_t bytes = 9;
    CHECK(critbeta_workspace_bytes(engine, &problem, &bytes) == CRITBETA_OK);
    CHECK(bytes == 0);

    critbeta_reports_args measure = {.size = sizeof measure, .scores = &s, .lens = &l, .reports = &r};
    CHECK(critbeta_row_reports(engine, &measure) == CRITBETA_OK);
    reports_of(raw, 0, found);
    for (size_t i = 0; i < ROWS; i++) {
        size_t n = (size_t)lens[i];
        double lambda = critical_beta(scores + i * COLS, n);
        double lse = softmax(scores + i * COLS, n, 1.0, weights);
        CHECK(near_(found[i].critical_beta, lambda, 1e-15));
        CHECK(found[i].critical_beta == found[i].critical_upper);
        CHECK(found[i].n == (double)(n - (i == 0)) && found[i].beta == 1);
        CHECK(n == 0 ? found[i].lse == -INFINITY : near_(found[i].lse, lse, 1e-6));
        double rank = found[i].contact_rank;
        CHECK(lambda == 0 || near_(log(rank) / found[i].contact_gap, lambda, 1e-15));
        CHECK(isnan(found[i].kept) && isnan(found[i].bound));
    }
    // Lambda(r) is the supremum of (log N - r) / t, which is lower.
    measure.resolve = 1.0;
    CHECK(critbeta_row_reports(engine, &measure) == CRITBETA_OK);
    reports_of(raw, 1.0, found);
    CHECK(found[0].resolved_beta < found[0].critical_beta && found[0].resolved_beta > 0);
    CHECK(near_((log(found[0].resolved_rank) - 1.0) / found[0].resolved_gap, found[0].resolved_beta, 1e-15));

    critbeta_softmax_args args = {
        .size = sizeof args, .scores = &s, .out = &o, .rule = rule, .lens = &l, .reports = &r};
    CHECK(critbeta_softmax(engine, &args) == CRITBETA_OK);
    reports_of(raw, 0, found);
    for (size_t i = 0; i < ROWS; i++) {
        size_t n = (size_t)lens[i];
        const float *row = scores + i * COLS, *got = out + i * COLS;
        double beta = fmin(1.5 * critical_beta(row, n), 40), most = 0;
        CHECK(near_(found[i].beta, beta, 1e-15));
        softmax(row, n, beta, weights);
        for (size_t j = 0; j < n; j++)
            // (4 + z) 2^-23 with z = beta * gap = log of the largest weight over this one.
            if (weights[j] > 1e-30)
                most = fmax(most, fabs(got[j] - weights[j]) / weights[j] / (5 + beta * 9));
        CHECK(most < 1.2e-7);
        for (size_t j = n; j < COLS; j++) CHECK(got[j] == 0);
    }
    // In place, and each row at a beta of its own.
    float copy[ROWS * COLS], betas[ROWS] = {0.5f, 1, 2, 3, 4};
    memcpy(copy, scores, sizeof copy);
    DLTensor c = floats(copy, block), b = tensor(betas, kDLFloat, 32, 1, one);
    critbeta_softmax_args place = {.size = sizeof place, .scores = &c, .out = &c, .rule = rule, .lens = &l};
    CHECK(critbeta_softmax(engine, &place) == CRITBETA_OK);
    CHECK(memcmp(copy, out, sizeof copy) == 0);
    critbeta_softmax_args each = {.size = sizeof each, .scores = &s, .out = &o, .betas = &b};
    CHECK(critbeta_softmax(engine, &each) == CRITBETA_OK);
    softmax(scores + 4 * COLS, COLS, 4, weights);
    CHECK(near_(out[4 * COLS], weights[0], 1e-5));

    // A caller of an older header has fewer fields. The struct ends where its memory does.
    size_t old = offsetof(critbeta_softmax_args, betas), late = sizeof args + 16;
    char *small = malloc(old), *large = calloc(1, late);
    memcpy(small, &args, old);
    memcpy(small, &old, sizeof old);
    CHECK(critbeta_softmax(engine, (void *)small) == CRITBETA_OK);
    double sum = 0;
    for (size_t j = 0; j < COLS; j++) sum += out[1 * COLS + j];
    CHECK(near_(sum, 1, 1e-5)); // without lens this row is full
    memcpy(large, &args, sizeof args);
    memcpy(large, &late, sizeof late);
    CHECK(critbeta_softmax(engine, (void *)large) == CRITBETA_OK);
    large[sizeof args + 3] = 1;
    REFUSED(critbeta_softmax(engine, (void *)large), CRITBETA_INVALID, "critbeta_softmax_args");
    for (size_t size = 0; size < 24; size++) { // no scores, or no output
        memcpy(small, &size, sizeof size);
        CHECK(critbeta_softmax(engine, (void *)small) == CRITBETA_INVALID);
    }
    free(small);
    free(large);

    // A refused call writes nothing.
    for (size_t i = 0; i < ROWS * COLS; i++) out[i] = 7;
    lens[2] = COLS + 1;
    if (!on_gpu) REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "length 301 of row 2");
    lens[2] = -1;
    if (!on_gpu) REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "lens");
    lens[2] = 1;
    DLTensor bad = s;
    int64_t wrong[] = {ROWS, -COLS}, huge[] = {(int64_t)1 << 61, COLS}, wide[] = {INT64_MAX, 1};
    args.scores = &bad;
    bad.shape = wrong;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "scores: its shape is [5, -300]");
    bad.shape = huge;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "address space");
    bad = s, bad.strides = wide;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "address space");
    bad = s, bad.data = NULL;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "scores");
    bad = s, bad.byte_offset = 2;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "aligned");
    bad = s, bad.byte_offset = UINT64_MAX;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "address space");
    bad = s, bad.ndim = -1;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "-1 axes");
    bad = s, bad.shape = NULL;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "shape is NULL");
    bad = s, bad.dtype.bits = 64;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "float64");
    bad = s, bad.dtype.lanes = 4;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "4 lanes");
    bad = s, bad.device.device_type = kDLCUDA, bad.device.device_id = 1;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "cuda:1");
    bad = o, bad.data = out + 8;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "overlap");
    args.scores = NULL;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "scores: NULL");
    args.scores = &s;
    DLTensor over = l;
    over.data = out;
    args.lens = &over;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "overlap");
    args.lens = &l;
    args.rule = (const critbeta_rule *)engine;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "not a rule");
    args.rule = rule;
    args.betas = &b;
    REFUSED(critbeta_softmax(engine, &args), CRITBETA_INVALID, "betas beside a rule");
    REFUSED(critbeta_softmax(NULL, &args), CRITBETA_INVALID, "engine: NULL");
    REFUSED(critbeta_softmax((const critbeta_engine *)rule, &args), CRITBETA_INVALID, "not a engine");
    REFUSED(critbeta_softmax(engine, NULL), CRITBETA_INVALID, "NULL");
    for (size_t i = 0; i < ROWS * COLS; i++) failures += out[i] != 7;

    CHECK(critbeta_rule_free(rule) == CRITBETA_OK);
}

// Pages of 4 slots whose numbers are eighths, so that every score is exact.
enum { PAGES = 6, SLOTS = 4, KV = 2, DIM = 64, HEADS = 4, SEQS = 2, BLOCKS = 3 };

static void pages(void) {
    static float keys[PAGES][SLOTS][KV][DIM], values[PAGES][SLOTS][KV][DIM], q[SEQS][HEADS][DIM];
    static float out[SEQS][HEADS][DIM];
    int32_t table[SEQS][BLOCKS] = {{4, 0, 2}, {1, -9, 99}}, lens[SEQS] = {11, 3};
    critbeta_row_report found[SEQS * HEADS];
    uint64_t state = 3;
    float *fill[] = {&keys[0][0][0][0], &values[0][0][0][0], &q[0][0][0]};
    size_t counts[] = {sizeof keys / 4, sizeof values / 4, sizeof q / 4};
    for (int a = 0; a < 3; a++)
        for (size_t i = 0; i < counts[a]; i++) fill[a][i] = (float)(random_(&state) % 17) / 8.0f - 1.0f;
    int64_t pool[] = {PAGES, SLOTS, KV, DIM}, tokens[] = {SEQS, HEADS, DIM}, blocks[] = {SEQS, BLOCKS};
    int64_t seqs[] = {SEQS}, report_shape[] = {SEQS, HEADS, KNOWN};
    DLTensor k = tensor(keys, kDLFloat, 32, 4, pool), v = tensor(values, kDLFloat, 32, 4, pool);
    DLTensor query = tensor(q, kDLFloat, 32, 3, tokens), o = tensor(out, kDLFloat, 32, 3, tokens);
    DLTensor t = tensor(table, kDLInt, 32, 2, blocks), l = tensor(lens, kDLInt, 32, 1, seqs);
    DLTensor r = tensor(found, kDLFloat, 64, 3, report_shape);
    critbeta_rule *rule = NULL;
    CHECK(critbeta_rule_parse("critical", NULL, 0, 0, &rule) == CRITBETA_OK);
    critbeta_paged_args args = {.size = sizeof args, .queries = &query, .keys = &k, .table = &t, .lens = &l,
                                .rule = rule, .reports = &r};
    if (on_gpu) {
        REFUSED(critbeta_measure_paged(engine, &args), CRITBETA_UNSUPPORTED, "critbeta_measure_paged");
        REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_UNSUPPORTED, "device cpu only");
        critbeta_rule_free(rule);
        return;
    }
    for (int decoded = 0; decoded < 2; decoded++) {
        args.values = decoded ? &v : NULL;
        args.out = decoded ? &o : NULL;
        args.measured = (uint32_t)decoded;
        int status = decoded ? critbeta_decode_paged(engine, &args) : critbeta_measure_paged(engine, &args);
        CHECK(status == CRITBETA_OK);
        for (int s = 0; s < SEQS; s++)
            for (int h = 0; h < HEADS; h++) {
                float scores[16];
                double weights[16];
                int n = lens[s], kv = h / (HEADS / KV);
                for (int j = 0; j < n; j++) {
                    float dot = 0;
                    for (int e = 0; e < DIM; e++) dot += q[s][h][e] * keys[table[s][j / SLOTS]][j % SLOTS][kv][e];
                    scores[j] = dot / 8.0f;
                }
                critbeta_row_report row = found[s * HEADS + h];
                double lambda = critical_beta(scores, (size_t)n), lse = softmax(scores, (size_t)n, lambda, weights);
                CHECK(near_(row.critical_beta, lambda, 1e-15) && near_(row.beta, lambda, 1e-15));
                CHECK(row.n == n && near_(row.lse, lse, 1e-6));
                if (!decoded) continue;
                CHECK(row.kept == n && row.dropped == 0 && row.bound == 0);
                for (int e = 0; e < DIM; e++) {
                    double want = 0;
                    for (int j = 0; j < n; j++)
                        want += weights[j] * values[table[s][j / SLOTS]][j % SLOTS][kv][e];
                    CHECK(fabs(out[s][h][e] - want) < 1e-6);
                }
            }
    }
    memset(out, 0x55, sizeof out);
    float before = out[0][0][0];
    table[0][2] = PAGES;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "page 6 in entry 2 of sequence 0");
    table[0][2] = 2, lens[1] = -4;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "length -4 of sequence 1");
    lens[1] = 3, args.layout = 2;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "layout 2");
    int64_t crowd[] = {(int64_t)1 << 40, HEADS, DIM}, nowhere[] = {0, 0, 0};
    args.layout = CRITBETA_NHD, query.shape = crowd, query.strides = nowhere;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "overlap each other");
    query.shape = tokens, query.strides = NULL, args.eps = NAN;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "eps NaN");
    args.eps = 0, args.values = NULL;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "values: NULL");
    args.values = &v, o.data = keys;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "overlap keys");
    o.data = out, k.dtype.code = kDLBfloat, k.dtype.bits = 16;
    REFUSED(critbeta_decode_paged(engine, &args), CRITBETA_INVALID, "type of the keys, bfloat16");
    CHECK(out[0][0][0] == before);
    critbeta_rule_free(rule);
}

static void rules(void) {
    critbeta_rule *rule = NULL, *untouched = NULL;
    int64_t tokens[] = {3}, to[] = {3, 2};
    int64_t positions[] = {0, 63, 4095};
    float out[6];
    DLTensor p = tensor(positions, kDLInt, 64, 1, tokens), o = floats(out, to);
    CHECK(critbeta_rule_parse("qwen-logn:train=64", NULL, 0, 0, &rule) == CRITBETA_OK);
    CHECK(critbeta_rule_betas(rule, &p, &o) == CRITBETA_OK);
    CHECK(out[0] == 1 && out[3] == 1 && out[4] == out[5] && near_(out[4], 2, 1e-7));
    positions[1] = -1;
    REFUSED(critbeta_rule_betas(rule, &p, &o), CRITBETA_INVALID, "-1 of token 1");
    CHECK(critbeta_rule_free(rule) == CRITBETA_OK && critbeta_rule_free(NULL) == CRITBETA_OK);
    CHECK(critbeta_rule_parse("critical", NULL, 0, 0, &rule) == CRITBETA_OK);
    REFUSED(critbeta_rule_betas(rule, &p, &o), CRITBETA_INVALID, "depends on the scores");
    critbeta_rule_free(rule);
    REFUSED(critbeta_rule_parse("criticl", NULL, 0, 0, &untouched), CRITBETA_INVALID, "criticl");
    REFUSED(critbeta_rule_parse("\xff", NULL, 0, 0, &untouched), CRITBETA_INVALID, "UTF-8");
    REFUSED(critbeta_rule_parse(NULL, NULL, 0, 0, &untouched), CRITBETA_INVALID, "NULL");
    REFUSED(critbeta_rule_parse("critical", NULL, 0, 0, NULL), CRITBETA_INVALID, "rule: NULL");
    REFUSED(critbeta_rule_parse("calibrated:/no/such.json", "l", 0, 1, &untouched), CRITBETA_FILE, "such.json");
    REFUSED(critbeta_rule_parse("calibrated:/no/such.json", NULL, 0, 0, &untouched), CRITBETA_INVALID, "layer");
    CHECK(untouched == NULL);
}

static void devices(void) {
    critbeta_engine *none = NULL;
    char text[4000], small[8];
    size_t length = 0, again = 0;
    REFUSED(critbeta_open("tpu", &none), CRITBETA_INVALID, "tpu");
    REFUSED(critbeta_open("cuda:-1", &none), CRITBETA_INVALID, "cuda:N");
    REFUSED(critbeta_open(NULL, &none), CRITBETA_INVALID, "NULL");
    REFUSED(critbeta_open("cpu", NULL), CRITBETA_INVALID, "engine: NULL");
    int status = critbeta_open("cuda:77", &none);
    CHECK(status == CRITBETA_NO_DEVICE || status == CRITBETA_UNSUPPORTED);
    CHECK(none == NULL && critbeta_close(NULL) == CRITBETA_OK);
    critbeta_problem problem = {
        .size = sizeof problem, .rows = 64, .cols = 4096, .dtype = {.code = kDLBfloat, .bits = 16, .lanes = 1}};
    CHECK(critbeta_plan(engine, &problem, text, sizeof text, &length) == CRITBETA_OK);
    CHECK(length == strlen(text) && strstr(text, "4096") != NULL && strstr(text, "bf16") != NULL);
    memset(small, 1, sizeof small);
    CHECK(critbeta_plan(engine, &problem, small, sizeof small, &again) == CRITBETA_OK);
    CHECK(again == length && strlen(small) == 7 && strncmp(small, text, 7) == 0);
    CHECK(critbeta_plan(engine, &problem, NULL, 0, &again) == CRITBETA_OK && again == length);
    REFUSED(critbeta_plan(engine, &problem, NULL, 5, NULL), CRITBETA_INVALID, "NULL");
    problem.cols = 0;
    REFUSED(critbeta_plan(engine, &problem, text, sizeof text, NULL), CRITBETA_INVALID, "0 columns");
    problem.cols = 4, problem.dtype.bits = 8;
    REFUSED(critbeta_plan(engine, &problem, text, sizeof text, NULL), CRITBETA_INVALID, "dtype");
    CHECK(strcmp(critbeta_version(), "") != 0);
}

int main(int count, char **words) {
    const char *device = count > 1 ? words[1] : "cpu";
    on_gpu = strcmp(device, "cpu") != 0;
    if (critbeta_open(device, &engine) != CRITBETA_OK) {
        fprintf(stderr, "%s\n", critbeta_last_error());
        return 2;
    }
    rows();
    pages();
    rules();
    devices();
    CHECK(critbeta_close(engine) == CRITBETA_OK);
    return finish(device);
}
