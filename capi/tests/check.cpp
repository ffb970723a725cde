// The C++ test program: handles as C++ owns them, several threads, and pages in another layout with indptr.
// Compiled with dlpack.h in sight and without.
#include "check.h"

#include <memory>
#include <string>
#include <thread>
#include <vector>

struct Close {
    void operator()(critbeta_engine *engine) const { critbeta_close(engine); }
    void operator()(critbeta_rule *rule) const { critbeta_rule_free(rule); }
};
using Engine = std::unique_ptr<critbeta_engine, Close>;
using Rule = std::unique_ptr<critbeta_rule, Close>;

static Engine open_(const char *device) {
    critbeta_engine *engine = nullptr;
    CHECK(critbeta_open(device, &engine) == CRITBETA_OK);
    return Engine(engine);
}

static Rule parse(const char *text, const char *layer = nullptr, uint64_t first = 0, uint64_t heads = 0) {
    critbeta_rule *rule = nullptr;
    CHECK(critbeta_rule_parse(text, layer, first, heads, &rule) == CRITBETA_OK);
    return Rule(rule);
}

// Threads share an engine and a rule. An error is that of its thread.
static void threads(const critbeta_engine *engine) {
    Rule rule = parse("critical:cap=8");
    std::vector<float> scores(64 * 500);
    uint64_t state = 5;
    for (float &score : scores) score = static_cast<float>(random_(&state) % 1000) / 200.0f;
    std::vector<std::vector<float>> outs(4, std::vector<float>(scores.size()));
    std::vector<std::string> errors(4);
    std::vector<std::thread> pool;
    for (std::size_t i = 0; i < outs.size(); i++)
        pool.emplace_back([&, i] {
            int64_t shape[] = {64, 500}, short_[] = {63, 500};
            DLTensor s = tensor(scores.data(), kDLFloat, 32, 2, shape);
            DLTensor o = tensor(outs[i].data(), kDLFloat, 32, 2, shape);
            critbeta_softmax_args args{};
            args.size = sizeof args;
            args.scores = &s;
            args.out = &o;
            args.rule = rule.get();
            for (int turn = 0; turn < 5; turn++)
                if (critbeta_softmax(engine, &args) != CRITBETA_OK) errors[i] += "failed ";
            if (i % 2) o.shape = short_;
            else o.dtype.bits = 64;
            if (critbeta_softmax(engine, &args) != CRITBETA_INVALID) errors[i] += "passed ";
            errors[i] += critbeta_last_error();
        });
    for (std::thread &thread : pool) thread.join();
    std::vector<double> weights(500);
    double beta = critical_beta(scores.data(), 500);
    softmax(scores.data(), 500, beta < 8 ? beta : 8, weights.data());
    for (std::size_t j = 0; j < 500; j++) CHECK(near_(outs[0][j], weights[j], 1e-5));
    for (std::size_t i = 0; i < outs.size(); i++) {
        CHECK(outs[i] == outs[0]);
        CHECK(errors[i].find(i % 2 ? "out float32 [63, 500]" : "out") == 0);
    }
}

// Two sequences of 2 and 1 query tokens over pages [pages, kv_heads, page, dim], with a budget for values.
static void pages(const critbeta_engine *engine) {
    constexpr int dim = 64, heads = 2, slots = 8, count = 40;
    std::vector<float> keys(count * slots * dim), values(keys.size()), q(3 * heads * dim), out(q.size());
    uint64_t state = 11;
    auto draw = [&](std::vector<float> &to) {
        for (float &value : to) value = static_cast<float>(random_(&state) % 17) / 8.0f - 1.0f;
    };
    draw(keys), draw(values), draw(q);
    std::vector<int32_t> ids, indptr{0, 25, 27}, lens{200, 9}, query_lens{2, 1};
    for (int i = 0; i < 27; i++) ids.push_back((i * 11) % count);
    int64_t pool[] = {count, 1, slots, dim}, tokens[] = {3, heads, dim}, n27[] = {27}, n3[] = {3}, n2[] = {2};
    constexpr int columns = sizeof(critbeta_row_report) / sizeof(double);
    std::vector<critbeta_row_report> found(3 * heads);
    int64_t report_shape[] = {3 * heads, columns};
    DLTensor k = tensor(keys.data(), kDLFloat, 32, 4, pool), v = tensor(values.data(), kDLFloat, 32, 4, pool);
    DLTensor query = tensor(q.data(), kDLFloat, 32, 3, tokens), o = tensor(out.data(), kDLFloat, 32, 3, tokens);
    DLTensor t = tensor(ids.data(), kDLInt, 32, 1, n27), p = tensor(indptr.data(), kDLInt, 32, 1, n3);
    DLTensor l = tensor(lens.data(), kDLInt, 32, 1, n2), ql = tensor(query_lens.data(), kDLInt, 32, 1, n2);
    DLTensor r = tensor(found.data(), kDLFloat, 64, 2, report_shape);
    Rule rule = parse("critical:ratio=2");
    critbeta_paged_args args{};
    args.size = sizeof args;
    args.queries = &query, args.keys = &k, args.values = &v, args.table = &t, args.indptr = &p, args.lens = &l;
    args.query_lens = &ql, args.rule = rule.get(), args.out = &o, args.reports = &r;
    args.layout = CRITBETA_HND, args.eps = 0.05;
    CHECK(critbeta_decode_paged(engine, &args) == CRITBETA_OK);
    double dropped = 0;
    for (int token = 0; token < 3; token++)
        for (int head = 0; head < heads; head++) {
            int seq = token / 2, n = seq ? 9 : 199 + token;
            std::vector<float> scores(n);
            std::vector<double> weights(n);
            const float *query_ = &q[(token * heads + head) * dim];
            auto row_of = [&](const std::vector<float> &of, int j) {
                return &of[(ids[indptr[seq] + j / slots] * slots + j % slots) * dim];
            };
            for (int j = 0; j < n; j++) {
                for (int e = 0; e < dim; e++) scores[j] += query_[e] * row_of(keys, j)[e];
                scores[j] /= 8.0f;
            }
            const critbeta_row_report &row = found[token * heads + head];
            double beta = 2 * critical_beta(scores.data(), n);
            softmax(scores.data(), n, beta, weights.data());
            CHECK(near_(row.beta, beta, 1e-15) && row.n == n && row.kept <= n);
            // A value is at most 1, so what stays unread moves an element by at most its share.
            CHECK(row.dropped >= 0 && row.dropped <= 0.05);
            dropped += row.dropped;
            for (int e = 0; e < dim; e++) {
                double want = 0;
                for (int j = 0; j < n; j++) want += weights[j] * row_of(values, j)[e];
                CHECK(fabs(out[(token * heads + head) * dim + e] - want) <= row.dropped + 1e-6);
            }
        }
    CHECK(dropped > 0);
    // One rule for each head: the file is that of `critbeta diagnose --calibration`.
    if (const char *file = std::getenv("CRITBETA_TEST_CALIBRATION")) {
        Rule each = parse((std::string("calibrated:") + file).c_str(), "layer.0", 1, 2);
        args.rule = each.get();
        CHECK(critbeta_decode_paged(engine, &args) == CRITBETA_OK);
        // c (ln n)^xi of heads 1 and 2: (0.5, 1) and (0.25, 0).
        CHECK(near_(found[0].beta, 0.5 * log(199.0), 1e-14) && found[1].beta == 0.25);
        critbeta_softmax_args rows{};
        rows.size = sizeof rows, rows.rule = each.get();
        int64_t shape[] = {1, 4};
        DLTensor a = tensor(q.data(), kDLFloat, 32, 2, shape), b = tensor(out.data(), kDLFloat, 32, 2, shape);
        rows.scores = &a, rows.out = &b;
        REFUSED(critbeta_softmax(engine, &rows), CRITBETA_INVALID, "2 rules");
        critbeta_rule *none = nullptr;
        std::string text = std::string("calibrated:") + file;
        REFUSED(critbeta_rule_parse(text.c_str(), "layer.0", 2, 2, &none), CRITBETA_FILE, "head 3");
    }
}

int main() {
    Engine engine = open_("cpu");
    threads(engine.get());
    pages(engine.get());
    engine.reset();
    return finish("c++");
}
