/**
 * Whether communication hides behind computing on a slow link, and computing behind communication: two ranks, each in a
 * network namespace of its own, joined by a link of 1 Gbit/s; trained without and with overlap. Needs root, `iproute2` and
 * `util-linux`. Each of the two has half of the processors for itself, as two hosts would.
 *
 *     deno run --allow-all tests/bench/slow_link.ts [--rate=1gbit] [--tokens=8,96] [--layers=4] [--hidden=256] [--experts=16]
 *         [--keep=FOLDER]
 *
 * The model is a mixture of experts, whose tokens see few of its parameters: so the tokens of a step decide how much computing
 * there is beside the same communication. Parameters can only be gathered during the forward pass, which needs them, and
 * gradients only summed during the backward pass, which makes them: between the two is the norm of all gradients. So a
 * step takes `least` = max(forward, communication / 2) + max(backward, communication / 2) + optimizer. Where backward is
 * two thirds of computing, that is up to 1.17 × the larger of the two, and over 1.1 × wherever computing is 0.90 to 1.15
 * of communication. The two numbers of tokens are therefore chosen to be clear of that, after two runs without overlap: one
 * with so many that computing is `few` of communication, or less, and one where it is `many` of it.
 *
 * Prints a JSON line for each run, of rank 0's trace of five steps (`--profiling`), seconds a step:
 *
 *  - `step`: from the beginning of one to that of the next;
 *  - `compute`: forward and backward passes less what is waited for, read back and uploaded within them; of the slower of the
 *    two ranks, step by step; `forward` and `backward`: of it;
 *  - `communication`: what was sent and received, divided by what a bare stream carries over the link both ways at once;
 *  - `optimizer`: norm and update; `under_way`: while at least one collective was; of the thread that computes,
 *    `waited_for_gradients` and `_parameters` of other ranks, `copied` to and from the device, `agreed` on losses and norms;
 *  - `bound`: 1.1 × max(compute, communication) + optimizer; `least`: as above; `read_backs`: how many a step has.
 *
 * `--keep` copies the traces into a folder, for chrome://tracing. The exit code is 1 where an overlapped step is over its
 * bound.
 */
import { fileURLToPath } from "node:url";

const option = (name: string, otherwise: string) =>
  Deno.args.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3) ?? otherwise;
const rate = option("rate", "1gbit"), given = option("tokens", "").split(",").filter(Boolean).map(Number);
const layers = Number(option("layers", "4")), hidden = Number(option("hidden", "256"));
const experts = Number(option("experts", "16"));
/**
 * Of communication, what computing is to be in the two runs: well below 0.90, well above 1.15. With overlap it takes longer
 * than without, as the processors that compute also move the bytes: by a third of communication on one core a rank.
 */
const few = 0.15, many = 2.2;
/** Tokens of the runs that show how computing grows with them. */
const trial = [4, 64] as const;
const project = fileURLToPath(new URL("../../", import.meta.url));
const [a, b] = [`slow${Deno.pid}a`, `slow${Deno.pid}b`], address = "10.79.78.1", other = "10.79.78.2";

function shell(text: string): void {
  const { success, stderr } = new Deno.Command("sh", { args: ["-ec", text] }).outputSync();
  if (!success) throw new Error(`Cannot make the link: ${new TextDecoder().decode(stderr).trim()}`);
}

function start(namespace: string, args: string[], env: Record<string, string> = {}): Deno.ChildProcess {
  const half = Math.max(1, navigator.hardwareConcurrency >> 1);
  const processors = navigator.hardwareConcurrency === 1
    ? "0"
    : namespace === a
    ? `0-${half - 1}`
    : `${half}-${2 * half - 1}`;
  return new Deno.Command("nsenter", {
    args: [`--net=/run/netns/${namespace}`, "taskset", "-c", processors, ...args],
    cwd: project,
    env: { LP_NUM_THREADS: "1", ...env },
    stdout: "piped",
    stderr: "piped",
  }).spawn();
}

async function finished(name: string, ...children: Deno.ChildProcess[]): Promise<void> {
  let failed: Deno.CommandOutput | undefined;
  await Promise.all(children.map(async (child) => {
    const output = await child.output();
    if (output.success || failed) return;
    failed = output;
    for (const other of children) {
      try {
        if (other !== child) other.kill(); // it waits for the one that failed
      } catch {
        // ended already
      }
    }
  }));
  if (failed) throw new Error(`${name} failed:\n${new TextDecoder().decode(failed.stderr)}`);
}

/** One end of a bare stream, both ways at once; the bytes a second that it got. */
const bareEnd = (listens: boolean) => `
  const chunk = new Uint8Array(1 << 20), into = new Uint8Array(1 << 20), total = 32 << 20, place = { hostname: "${address}", port: 8897 };
  const dial = async () => { for (;;) try { return await Deno.connect(place); } catch { await new Promise((go) => setTimeout(go, 100)); } };
  const connection = ${listens ? "await Deno.listen(place).accept()" : "await dial()"};
  const send = async () => { for (let sent = 0; sent < total;) sent += await connection.write(chunk.subarray(0, total - sent)); };
  const began = performance.now(), sent = send();
  for (let got = 0; got < total;) got += await connection.read(into);
  const seconds = (performance.now() - began) / 1000;
  await sent;
  await connection.closeWrite();
  await connection.read(into); // until the other end has all
  console.log(total / seconds);
  Deno.exit(0);`;

async function bareRate(): Promise<number> {
  const ends = [true, false].map((listens) => start(listens ? a : b, [Deno.execPath(), "eval", bareEnd(listens)]));
  const outputs = await Promise.all(ends.map((child) => child.output()));
  const failed = outputs.find(({ success }) => !success);
  if (failed) throw new Error(`The bare stream failed:\n${new TextDecoder().decode(failed.stderr)}`);
  return Math.min(...outputs.map(({ stdout }) => Number(new TextDecoder().decode(stdout))));
}

interface TraceEvent {
  readonly ph: string;
  readonly name: string;
  readonly tid: number;
  readonly ts: number;
  readonly dur: number;
  readonly args: Readonly<Record<string, unknown>>;
}

function find(folder: string, wanted: string): string | undefined {
  for (const { name, isDirectory } of Deno.readDirSync(folder)) {
    if (name === wanted) return `${folder}/${name}`;
    const inside = isDirectory ? find(`${folder}/${name}`, wanted) : undefined;
    if (inside) return inside;
  }
}

/** Trains nine steps and reads the traces. */
async function train(folder: string, tokens: number, overlap: boolean) {
  await Deno.mkdir(folder);
  const record = {
    JOB_NAME: "slow_link",
    model_type: "INTERNLM_MoE",
    model: {
      num_layers: layers,
      hidden_size: hidden,
      num_attention_heads: 8,
      num_kv_attention_heads: 8,
      vocab_size: 512,
      mlp_ratio: 1,
      multiple_of: 64,
      num_experts: experts,
      top_k: 2,
      moe_type: "Dropless",
    },
    data: { seq_len: tokens, micro_bsz: 1, micro_num: 1, total_steps: 9, valid_every: 0 },
    adam: { lr: 1e-3 },
    parallel: { zero1: { size: -1 }, expert: { size: 1 } },
    hybrid_zero_optimizer: {
      overlap_sync_grad: overlap,
      overlap_sync_param: overlap,
      use_split_tensor_optim: true,
      reduce_bucket_size: 1 << 19,
      all_gather_size: 2 << 20,
    },
    ckpt: { enable_save_ckpt: false },
    runtime: { run_dir: `${folder}/RUN` },
  };
  const path = `${folder}/record.yaml`;
  await Deno.writeTextFile(path, JSON.stringify(record));
  const place = ["--config", path, "--backend", "cpu", "--host", address, "--port", "8899", "--profiling"];
  const env = { TROUPE_TOKEN: "of this benchmark", TROUPE_NET: `,${address},${other}`, TROUPE_WRITE: `,${folder}` };
  const root = start(a, ["./troupe", "train", ...place, "--world_size", "2"], env);
  // A member's ranks are traced where its own environment says so.
  const member = start(b, ["./troupe", "train", ...place, "--join"], { ...env, TROUPE_PROFILE: "1" });
  await finished("The training", root, member);

  const [own, others] = await Promise.all([0, 1].map(async (rank) => {
    const trace = find(folder, `steps_rank${rank}.json`), kept = option("keep", "");
    if (trace === undefined) throw new Error(`The training left no trace of rank ${rank}`);
    if (kept !== "") await Deno.copyFile(trace, `${kept}/tokens_${tokens}_overlap_${overlap}_rank${rank}.json`);
    return analyse(JSON.parse(await Deno.readTextFile(trace)));
  }));
  // Ranks wait for each other in every step: none is quicker than the slower one's computing.
  const slower = own!.computing.map((mine, step) => {
    const other = others!.computing[step]!;
    return mine.forward + mine.backward >= other.forward + other.backward ? mine : other;
  });
  const mean = (of: (each: Computing) => number) => slower.reduce((sum, each) => sum + of(each), 0) / slower.length;
  const forward = mean((each) => each.forward), backward = mean((each) => each.backward);
  return { ...own!.figures, compute: forward + backward, forward, backward };
}

interface Computing {
  readonly forward: number;
  readonly backward: number;
}

/** What a rank's trace says, in seconds a step, and its computing in each. */
function analyse(events: readonly TraceEvent[]) {
  const lanes = new Map(events.filter(({ name }) => name === "thread_name").map(({ tid, args }) => [tid, args.name]));
  const spans = events.filter(({ ph }) => ph === "X").map(({ name, tid, ts, dur, args }) => (
    { name, lane: lanes.get(tid), begin: ts / 1e6, end: (ts + dur) / 1e6, args }
  ));
  const steps = spans.filter(({ lane }) => lane === "steps").sort((x, y) => x.begin - y.begin);
  const from = steps[0]!.begin, to = steps.at(-1)!.begin, count = steps.length - 1;
  const within = spans.filter(({ begin }) => begin >= from && begin < to),
    host = within.filter(({ lane }) => lane === "host");
  const sum = (chosen: typeof host) => chosen.reduce((total, { begin, end }) => total + end - begin, 0) / count;
  const passes = host.filter(({ name }) => /^(forward|backward) /.test(name));
  const phases = host.filter(({ name }) => /^(read-back|take|upload|wait for )/.test(name));
  const nested = phases.filter((phase) => passes.some(({ begin, end }) => phase.begin >= begin && phase.end <= end));
  const computing = steps.slice(0, -1).map(({ begin: from }, step): Computing => {
    const length = (chosen: typeof host) => chosen.reduce((total, { begin, end }) => total + end - begin, 0);
    const of = (kind: string) => {
      const here = passes.filter(({ name, begin }) =>
        name.startsWith(kind) && begin >= from && begin < steps[step + 1]!.begin
      );
      const within = nested.filter((phase) => here.some(({ begin, end }) => phase.begin >= begin && phase.end <= end));
      return length(here) - length(within);
    };
    return { forward: of("forward"), backward: of("backward") };
  });
  let underWay = 0, reached = from;
  for (const { begin, end } of within.filter(({ lane }) => lane === "communicator").sort((x, y) => x.begin - y.begin)) {
    underWay += Math.max(0, Math.min(end, to) - Math.max(begin, reached));
    reached = Math.max(reached, end);
  }
  const named = (pattern: RegExp) => sum(host.filter(({ name }) => pattern.test(name)));
  const figures = {
    step: (to - from) / count,
    optimizer: named(/^(norm|optimizer)$/),
    under_way: underWay / count,
    read_backs: host.filter(({ name }) => name === "read-back").length / count,
    waited_for_gradients: named(/^wait for reduce$/),
    waited_for_parameters: named(/^wait for gather$/),
    copied: named(/^(read-back|take|upload)$/),
    agreed: named(/^agree$/),
    // Half of the gradients go out and half come in, then as much of parameters.
    bytes: host.filter(({ name }) => name === "wait for reduce")
      .reduce((all, { args }) => all + Number(args.bytes), 0) / count,
  };
  return { figures, computing };
}

const folder = await Deno.makeTempDir({ prefix: "slow-link-" });
const digits = (value: number) => Number(value.toPrecision(4));
try {
  shell(
    `ip netns add ${a}; ip netns add ${b}; ip link add va netns ${a} type veth peer name vb netns ${b}
     ip -n ${a} addr add ${address}/24 dev va; ip -n ${b} addr add ${other}/24 dev vb
     for n in ${a} ${b}; do ip -n $n link set lo up; done
     ip -n ${a} link set va up; ip -n ${b} link set vb up
     nsenter --net=/run/netns/${a} tc qdisc add dev va root tbf rate ${rate} burst 256kb latency 50ms
     nsenter --net=/run/netns/${b} tc qdisc add dev vb root tbf rate ${rate} burst 256kb latency 50ms`,
  );
  const bytesPerSecond = await bareRate();
  console.log(
    JSON.stringify({
      bench: "slow_link",
      figure: "bare stream, both ways at once",
      value: digits(bytesPerSecond / 1e6),
      unit: "MB/s",
      rate,
    }),
  );
  let runs = 0;
  /** @returns computing as a share of communication */
  const run = async (tokens: number, overlap: boolean): Promise<number> => {
    const { bytes, step, ...parts } = await train(`${folder}/${runs++}`, tokens, overlap);
    const { compute, forward, backward, optimizer } = parts, communication = bytes / bytesPerSecond;
    const bound = 1.1 * Math.max(compute, communication) + optimizer;
    const least = Math.max(forward, communication / 2) + Math.max(backward, communication / 2) + optimizer;
    console.log(JSON.stringify({
      bench: "slow_link",
      overlap,
      tokens,
      bytes_each_way: Math.round(bytes),
      ...Object.fromEntries(
        Object.entries({ step, bound, least, communication, ...parts }).map(([key, value]) => [key, digits(value)]),
      ),
      ...(overlap ? { within_bound: step <= bound } : {}),
    }));
    if (overlap && step > bound) Deno.exitCode = 1;
    return compute / communication;
  };
  const chosen = given.length > 0 ? given : await (async () => {
    const [low, high] = [await run(trial[0], false), await run(trial[1], false)];
    const each = (high - low) / (trial[1] - trial[0]);
    if (each <= 0) throw new Error(`${trial[1]} tokens took no longer than ${trial[0]}: is the machine busy?`);
    const tokens = (share: number) => Math.max(1, Math.round(trial[0] + (share - low) / each));
    return [tokens(few), tokens(many)];
  })();
  for (const tokens of chosen) {
    if (given.length > 0 || !trial.some((known) => known === tokens)) await run(tokens, false);
    await run(tokens, true);
  }
} finally {
  new Deno.Command("sh", { args: ["-c", `ip netns del ${a}; ip netns del ${b}`] }).outputSync();
  await Deno.remove(folder, { recursive: true });
}
