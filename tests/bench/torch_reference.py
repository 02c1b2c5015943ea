#!/usr/bin/env python3
"""The PyTorch side of the GPU benchmark: the same shapes and models as gpu.ts, so that figures are ratios of one run.

    python3 tests/bench/torch_reference.py [matmul] [copy] [attention] [norm] [cross_entropy] [embedding] [adamw] [step]
      [--types float32,tf32,float16,bfloat16] [--model 124M] [--batch 4] [--tokens 1024]
      [--seconds 20]

A step is timed 40 times (124M) or 20 times, and no more often than the seconds allow, but at least 6 times.
Prints one JSON object a line. Needs PyTorch and a CUDA device; nothing else. Times are medians, by device events.
"""
import argparse
import json
import math
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

# (layers, hidden, heads, feed-forward), vocabulary untied
MODELS = {"124M": (12, 768, 12, 2048), "350M": (24, 1024, 16, 2816), "1.3B": (24, 2048, 16, 5632)}
VOCABULARY = 50304
# (m, n, k) with A and B as gpu.ts has them: n = as written, t = transposed in memory
MATMULS = [(4096, 4096, 4096, "nn"), (8192, 8192, 8192, "nn"), (4096, 768, 768, "nt"), (4096, 2048, 768, "nt"),
           (4096, 768, 2048, "nt"), (4096, 50304, 768, "nt"), (4096, 768, 768, "nn"), (4096, 768, 2048, "nn"), (4096, 2048, 768, "nn"),
           (4096, 768, 50304, "nn"), (768, 768, 4096, "tn"), (2048, 768, 4096, "tn"), (768, 2048, 4096, "tn"), (50304, 768, 4096, "tn")]


def report(**fields):
    print(json.dumps({"peer": "torch", "version": torch.__version__, "device": torch.cuda.get_device_name(), **fields}), flush=True)


def seconds_of(body, repeats=7):
    body()
    body()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        body()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def use(type_name):
    torch.backends.cuda.matmul.allow_tf32 = type_name == "tf32"
    return {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[type_name]


def matmuls(type_name):
    dtype = use(type_name)
    for m, n, k, form in MATMULS:
        a = torch.randn((k, m) if form[0] == "t" else (m, k), device="cuda", dtype=dtype)
        b = torch.randn((n, k) if form[1] == "t" else (k, n), device="cuda", dtype=dtype)
        c = torch.empty(m, n, device="cuda", dtype=dtype)
        left, right = (a.T if form[0] == "t" else a), (b.T if form[1] == "t" else b)
        seconds = seconds_of(lambda: torch.mm(left, right, out=c))
        report(bench="matmul", type=type_name, form=form, shape=f"{m} x {n} x {k}", seconds=seconds, tflops=2 * m * n * k / seconds / 1e12)


def copies():
    for mebibytes in (1024, 64, 12):
        x = torch.randn(mebibytes << 18, device="cuda")
        y = torch.empty_like(x)
        seconds = seconds_of(lambda: y.copy_(x))
        report(bench="copy", bytes=mebibytes << 20, seconds=seconds, gbps=2 * (mebibytes << 20) / seconds / 1e9)


def attentions(type_name):
    dtype = use(type_name)
    for batch, heads, tokens, size in ((4, 16, 2048, 64), (4, 12, 1024, 64), (4, 16, 2048, 128)):
        q, k, v = (torch.randn(batch, heads, tokens, size, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3))
        grad = torch.randn_like(q)
        work = 2 * batch * heads * size * tokens * (tokens + 1) / 2
        forward = seconds_of(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))

        def both():
            F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(grad)
        whole = seconds_of(both)
        report(bench="attention", type=type_name, shape=f"{batch} x {heads} x {tokens} x {size}", forward=forward, both=whole,
               tflops_forward=2 * work / forward / 1e12, tflops=7 * work / whole / 1e12)


def norms():
    x = torch.randn(8192, 2048, device="cuda", requires_grad=True)
    weight = torch.ones(2048, device="cuda", requires_grad=True)
    grad, least = torch.randn_like(x), 4 * 8192 * 2048
    forward = seconds_of(lambda: F.rms_norm(x, (2048,), weight, 1e-5))
    whole = seconds_of(lambda: F.rms_norm(x, (2048,), weight, 1e-5).backward(grad))
    report(bench="norm", shape="8192 x 2048", forward=forward, both=whole, gbps_forward=2 * least / forward / 1e9)


def cross_entropies():
    logits = torch.randn(4096, VOCABULARY, device="cuda", requires_grad=True)
    labels, least = torch.randint(VOCABULARY, (4096,), device="cuda"), 4 * 4096 * VOCABULARY
    forward = seconds_of(lambda: F.cross_entropy(logits, labels))
    whole = seconds_of(lambda: F.cross_entropy(logits, labels).backward())
    report(bench="cross_entropy", shape=f"4096 x {VOCABULARY}", forward=forward, both=whole, gbps_forward=least / forward / 1e9)


def embeddings():
    """Of a dense gradient, which PyTorch fills with zeros first."""
    for tokens, columns in ((4096, 768), (32768, 768), (32768, 2048)):
        torch.manual_seed(3)
        spreads = {"words": (VOCABULARY ** torch.rand(tokens, device="cuda")).long().sub(1).clamp(max=VOCABULARY - 1),
                   "evenly": torch.randint(VOCABULARY, (tokens,), device="cuda"), "one id": torch.full((tokens,), 7, device="cuda")}
        grad = torch.randn(tokens, columns, device="cuda")
        for spread, ids in spreads.items():
            seconds = seconds_of(lambda: torch.ops.aten.embedding_dense_backward(grad, ids, VOCABULARY, -1, False))
            report(bench="embedding", shape=f"{tokens} of {VOCABULARY} x {columns}, {spread}", seconds=seconds)


def adamw():
    parameter = torch.randn(1 << 27, device="cuda", requires_grad=True)
    parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW([parameter], fused=True)
    seconds = seconds_of(optimizer.step)
    report(bench="adamw", shape=str(1 << 27), seconds=seconds, gbps=7 * 4 * (1 << 27) / seconds / 1e9)


class Block(nn.Module):
    def __init__(self, hidden, heads, inner):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 2 * inner, bias=False), nn.Linear(inner, hidden, bias=False)

    def forward(self, x, cos, sin):
        b, t, h = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.heads, h // self.heads).permute(2, 0, 3, 1, 4).unbind(0)

        def turn(y):
            first, second = y.chunk(2, -1)
            return torch.cat((first * cos - second * sin, first * sin + second * cos), -1).to(y.dtype)
        y = F.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, h))
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(F.silu(gate) * up)


class Model(nn.Module):
    def __init__(self, layers, hidden, heads, inner, tokens):
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(VOCABULARY, hidden), nn.RMSNorm(hidden, eps=1e-5), nn.Linear(hidden, VOCABULARY, bias=False)
        self.blocks = nn.ModuleList(Block(hidden, heads, inner) for _ in range(layers))
        half = hidden // heads // 2
        angles = torch.outer(torch.arange(tokens).float(), 10000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0, 0.02)

    def forward(self, ids, labels):
        x = self.table(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).view(-1, VOCABULARY).float(), labels.view(-1))


def step(type_name, name, batch=4, tokens=1024, most_seconds=20):
    use("tf32" if type_name in ("bfloat16", "float16") else type_name)
    scaler = torch.amp.GradScaler("cuda", enabled=type_name == "float16")
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    layers, hidden, heads, inner = MODELS[name]
    model = Model(layers, hidden, heads, inner, tokens).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    ids, labels = (torch.randint(VOCABULARY, (batch, tokens), device="cuda") for _ in range(2))
    times, losses = [], []
    while len(times) < (40 if name == "124M" else 20) and (len(times) < 6 or sum(times) < most_seconds):
        start = time.perf_counter()
        half = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(type_name)
        with torch.autocast("cuda", dtype=half or torch.bfloat16, enabled=half is not None):
            loss = model(ids, labels)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[len(times) // 2:])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    work = (6 * (parameters - VOCABULARY * hidden) + 6 * layers * hidden * tokens) * batch * tokens
    assert math.isfinite(losses[-1])
    report(bench="step", type=type_name, model=name, batch=batch, tokens=tokens, parameters=parameters, seconds=seconds, tokens_per_second=batch * tokens / seconds,
           tflops=work / seconds / 1e12, peak_bytes=torch.cuda.max_memory_allocated())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["matmul", "copy", "attention", "norm", "cross_entropy", "embedding", "adamw", "step"])
    parser.add_argument("--types", default="float32")
    parser.add_argument("--model", default="124M", choices=MODELS)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    if "copy" in arguments.what:
        copies()
    for name, body in (("norm", norms), ("cross_entropy", cross_entropies), ("embedding", embeddings), ("adamw", adamw)):
        if name in arguments.what:
            body()
    for type_name in arguments.types.split(","):
        if "matmul" in arguments.what:
            matmuls(type_name)
        if "attention" in arguments.what:
            attentions(type_name)
        if "step" in arguments.what:
            step(type_name, arguments.model, arguments.batch, arguments.tokens, arguments.seconds)


main()
