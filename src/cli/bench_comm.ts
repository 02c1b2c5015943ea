/**
 * `troupe bench comm`: all-reduce between processes of this host, beside the same ring written with bare streams and
 * run in turns with it, so that the ratio says what authentication, framing, checks and order cost.
 */
import { createCommunicator, type Group } from "../comm/collectives/communicator.ts";
import { joinWorld, openRendezvous } from "../comm/transport/rendezvous.ts";
import { type BenchLine, type Report, round, secondsSince, spread } from "./bench_line.ts";
import { benchRanks } from "./bench_ranks.ts";

const hostname = "127.0.0.1";
/** Bytes that the bare ring adds at a time. */
const pieceBytes = 1 << 20;

interface Task {
  readonly rank: number;
  readonly world: number;
  readonly port: number;
  readonly token: string;
  readonly sizes: readonly number[];
  readonly repeats: number;
}

/** The connections of a bare ring: to the next rank, and from the previous one. */
interface BareRing extends Disposable {
  readonly next: Deno.TcpConn;
  readonly previous: Deno.TcpConn;
}

async function openBareRing(group: Group): Promise<BareRing> {
  const { index, ranks } = group, size = ranks.length;
  using listener = Deno.listen({ hostname, port: 0 });
  const ports = new Float32Array(size); // any port is exact in float32
  ports[index] = listener.addr.port;
  await group.allGather(ports);
  const [next, previous] = await Promise.all([
    Deno.connect({ hostname, port: ports[(index + 1) % size]! }),
    listener.accept(),
  ]);
  for (const connection of [next, previous]) connection.setNoDelay(true);
  return {
    next,
    previous,
    [Symbol.dispose]() {
      next.close();
      previous.close();
    },
  };
}

const bytesOf = (data: Float32Array) => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

async function writeAll(connection: Deno.TcpConn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) done += await connection.write(bytes.subarray(done));
}

async function readAll(connection: Deno.TcpConn, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const count = await connection.read(bytes.subarray(done));
    if (count === null) throw new Deno.errors.UnexpectedEof("Cannot measure the bare ring: a rank has left");
    done += count;
  }
}

const scratch = new Float32Array(new SharedArrayBuffer(pieceBytes));

/** The ring of textbooks: n − 1 steps that add, n − 1 that copy, nothing else. */
async function bareAllReduce({ next, previous }: BareRing, data: Float32Array, index: number, size: number) {
  const at = (i: number) => Math.floor(data.length * i / size);
  const chunk = (i: number) => {
    const place = (i % size + size) % size;
    return data.subarray(at(place), at(place + 1));
  };
  const readSum = async (sum: Float32Array) => {
    for (let done = 0; done < sum.length; done += scratch.length) {
      const count = Math.min(scratch.length, sum.length - done);
      await readAll(previous, bytesOf(scratch.subarray(0, count)));
      for (let i = 0; i < count; i++) sum[done + i] = sum[done + i]! + scratch[i]!;
    }
  };
  for (let step = 0; step < size - 1; step++) {
    await Promise.all([writeAll(next, bytesOf(chunk(index - step))), readSum(chunk(index - step - 1))]);
  }
  for (let step = 0; step < size - 1; step++) {
    await Promise.all([
      writeAll(next, bytesOf(chunk(index + 1 - step))),
      readAll(previous, bytesOf(chunk(index - step))),
    ]);
  }
}

/** Once round the ring and back to rank 0, with 64 bytes. */
async function bareRoundTrip({ next, previous }: BareRing, index: number): Promise<void> {
  const bytes = new Uint8Array(64);
  if (index === 0) await writeAll(next, bytes);
  await readAll(previous, bytes);
  if (index !== 0) await writeAll(next, bytes);
}

/** One rank, in a process of its own. Its task comes on standard input; rank 0 prints the lines. */
export async function commChild(): Promise<void> {
  const { rank, world, port, token, sizes, repeats }: Task = JSON.parse(await new Response(Deno.stdin.readable).text());
  const transport = await joinWorld({ rank, world, token, root: { hostname, port }, hostname });
  const group = createCommunicator(transport).group("global", Array.from({ length: world }, (_, i) => i));
  const print = (line: BenchLine) => {
    if (rank === 0) console.log(JSON.stringify(line));
  };
  /** Seconds of one call, the mean over `calls`. */
  const time = async (calls: number, work: () => Promise<void>): Promise<number> => {
    await group.barrier();
    const started = performance.now();
    for (let i = 0; i < calls; i++) await work();
    return secondsSince(started) / calls;
  };
  {
    using ring = await openBareRing(group);
    /** Samples of two ways in turns, after one of each that does not count. */
    const compare = async (calls: number, bare: () => Promise<void>, own: () => Promise<void>) => {
      const samples: [number[], number[]] = [[], []];
      for (let i = 0; i <= repeats; i++) {
        const pair = [await time(calls, bare), await time(calls, own)];
        if (i > 0) samples.forEach((sample, way) => sample.push(pair[way]!));
      }
      return samples.map(spread) as [{ median: number; best: number }, { median: number; best: number }];
    };

    const few = new Float32Array(16);
    const [trip, small] = await compare(1000, () => bareRoundTrip(ring, rank), () => group.allReduce(few));
    print({
      bench: "comm",
      figure: "small_all_reduce",
      value: round(small.median * 1e6),
      unit: "µs",
      best: round(small.best * 1e6),
      ranks: world,
      bytes: 64,
      bare_round_trip: round(trip.median * 1e6),
      ratio: round(small.median / trip.median),
    });
    for (const bytes of sizes) {
      const data = new Float32Array(new SharedArrayBuffer(bytes));
      const calls = Math.max(1, Math.min(100, Math.floor((2 << 20) / bytes)));
      const [bare, own] = await compare(
        calls,
        () => bareAllReduce(ring, data, rank, world),
        () => group.allReduce(data),
      );
      const busBandwidth = (seconds: number) => round(2 * (world - 1) / world * bytes / seconds / 1e9);
      print({
        bench: "comm",
        figure: "all_reduce",
        value: busBandwidth(own.median),
        unit: "GB/s",
        best: busBandwidth(own.best),
        ranks: world,
        bytes,
        bare: busBandwidth(bare.median),
        bare_best: busBandwidth(bare.best),
        ratio: round(bare.median / own.median),
        repeats,
        measured: "bus bandwidth, 2 (n − 1) / n · bytes / s, of float32; bare: the same ring without frames and checks",
      });
    }
  }
  await transport.close();
}

/** Starts the ranks as processes and reports what rank 0 measures. @param largest bytes of the largest message */
export async function benchComm(
  { ranks, largest, repeats, report }: {
    ranks: readonly number[];
    largest: number;
    repeats: number;
    report: Report;
  },
): Promise<void> {
  const sizes: number[] = [];
  for (let bytes = 1024; bytes <= largest; bytes *= 4) sizes.push(bytes);
  for (const world of ranks) {
    const token = crypto.randomUUID(), meeting = openRendezvous({ hostname, token, world });
    try {
      await benchRanks<Task>({
        verb: ["bench", "comm", "--child"],
        permissions: { read: true, env: true, net: [hostname] },
        world,
        task: (rank) => ({ rank, world, port: meeting.port, token, sizes, repeats }),
        report,
      });
    } finally {
      await meeting.close();
    }
  }
}
