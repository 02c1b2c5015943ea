import { assert, assertEquals, assertRejects, assertStringIncludes, assertThrows } from "@std/assert";
import { hostname, onAllRanks, tcpWorld } from "../_testing.ts";
import { HandshakeError } from "../handshake.ts";
import { encryptedFrames } from "./encryption.ts";
import { encodeFrame, headerBytes, maxBodyBytes, noTag } from "./frame.ts";
import { type FrameStream, plainFrames } from "./frame_stream.ts";
import { CommunicationError } from "./link.ts";
import { joinWorld, openRendezvous } from "./rendezvous.ts";
import { createTransport, type Transport } from "./transport.ts";

const token = "secret";

async function sockets(): Promise<[Deno.TcpConn, Deno.TcpConn]> {
  using listener = Deno.listen({ hostname, port: 0 });
  return await Promise.all([listener.accept(), Deno.connect({ hostname, port: listener.addr.port })]);
}

/** A transport of rank 0, and the bare connection of what should be rank 1. */
async function withImpostor(): Promise<[Transport, Deno.TcpConn]> {
  const [own, other] = await sockets();
  return [createTransport({ rank: 0, world: 2, streams: new Map([[1, plainFrames(own)]]) }), other];
}

const header = (change: (view: DataView) => void) => {
  const bytes = new Uint8Array(headerBytes);
  encodeFrame({ kind: "data", tag: noTag, bodyBytes: 0, messageBytes: 0 }, bytes);
  change(new DataView(bytes.buffer));
  return bytes;
};
const badFrames: [string, Uint8Array, string][] = [
  [
    "no frame at all",
    new TextEncoder().encode("GET / HTTP/1.1\r\nHost: example.org\r\n\r\n1234"),
    "A frame begins with",
  ],
  [
    "a body above the bound",
    header((view) => {
      view.setUint32(20, 2 ** 31, true);
      view.setFloat64(32, 2 ** 31, true);
    }),
    `${maxBodyBytes} bytes at most`,
  ],
  [
    "a large message that nobody asked for",
    header((view) => {
      view.setUint32(20, maxBodyBytes, true);
      view.setFloat64(32, maxBodyBytes, true);
    }),
    "came unasked",
  ],
  ["an unknown kind", header((view) => view.setUint8(2, 200)), "kind is below"],
];
for (const [what, bytes, expected] of badFrames) {
  Deno.test(`a link closes with a reason on ${what}`, async () => {
    const [transport, impostor] = await withImpostor();
    await impostor.write(bytes);
    const { message } = await transport.aborted;
    assertStringIncludes(message, "The connection to rank 1 is broken: ");
    assertStringIncludes(message, expected);
    await assertRejects(() => transport.send(1, noTag, new Uint8Array(1)), CommunicationError, expected);
    await transport.close();
    impostor.close();
  });
}

Deno.test("a link closes with a reason on control that is not JSON, or not known", async () => {
  for (const text of ["{", '{"kind":"obey"}']) {
    const [transport, impostor] = await withImpostor(), body = new TextEncoder().encode(text);
    await plainFrames(impostor).write(
      { kind: "control", tag: noTag, bodyBytes: body.length, messageBytes: body.length },
      body,
    );
    assertStringIncludes((await transport.aborted).message, "The connection to rank 1 is broken");
    await transport.close();
    impostor.close();
  }
});

Deno.test("a link never fails in another way than with a reason, whatever it is fed", async () => {
  let seed = 5;
  const random = (below: number) => (seed = Math.imul(seed, 1664525) + 1013904223 >>> 0) % below;
  for (let trial = 0; trial < 60; trial++) {
    const [transport, impostor] = await withImpostor();
    for (let piece = 0; piece < 4; piece++) {
      const bytes = trial % 2 === 0
        ? header((view) => view.setUint8(random(headerBytes), random(256)))
        : Uint8Array.from({ length: 1 + random(100) }, () => random(256));
      await impostor.write(bytes).catch(() => {});
    }
    impostor.close();
    assert((await transport.aborted) instanceof CommunicationError);
    await transport.close();
  }
});

Deno.test("ranks meet though strangers knock: a wrong token, a scanner, hundreds of idle connections", async () => {
  const refused: string[] = [], world = 2;
  const meeting = openRendezvous({ hostname, token, world, onRefused: (reason) => refused.push(reason) });
  const root = { hostname, port: meeting.port };
  const idle = await Promise.all(Array.from({ length: 300 }, () => Deno.connect(root)));
  const scanner = await Deno.connect(root);
  await scanner.write(new TextEncoder().encode("GET / HTTP/1.1\r\nHost: example.org\r\nAccept: text/html,*/*\r\n\r\n"));
  await assertRejects(
    () => joinWorld({ rank: 0, world, root, hostname, token: "guess" }),
    HandshakeError,
  );
  const transports = await Promise.all(
    [0, 1].map((rank) => joinWorld({ rank, world, root, hostname, token })),
  );
  await meeting.complete;
  assert(refused.filter((reason) => reason.includes("does not know the run's token")).length >= 1);
  // No more than the bound are held; the others were sent away as new ones came.
  assert(refused.length >= 300 - 64, `${refused.length}`);
  for (const connection of [...idle, scanner]) connection.close();
  await meeting.close();
  await onAllRanks(transports, async (communicator, rank) => {
    const data = Float32Array.of(rank);
    await communicator.group("data", [0, 1]).allReduce(data);
    assertEquals(data[0], 1);
  });
});

Deno.test("openRendezvous() refuses a rank of another world, twice the same, or of another run, and says so", async () => {
  const meeting = openRendezvous({ hostname, token, world: 3, fingerprint: "a" });
  const root = { hostname, port: meeting.port }, common = { root, hostname, token, fingerprint: "a" };
  const first = assertRejects(() => joinWorld({ ...common, rank: 0, world: 3 }), CommunicationError);
  await assertRejects(() => joinWorld({ ...common, rank: 1, world: 4 }), CommunicationError, "a world of 4 ranks");
  await assertRejects(() => joinWorld({ ...common, rank: 3, world: 3 }), CommunicationError, "rank 3 is not one of");
  await assertRejects(
    () => joinWorld({ ...common, rank: 1, world: 3, fingerprint: "b" }),
    CommunicationError,
    "another configuration or version: b, not a",
  );
  await assertRejects(() => joinWorld({ ...common, rank: 0, world: 3 }), CommunicationError, "a rank 0 already");
  await meeting.close();
  await first;
});

Deno.test("openRendezvous() names the ranks that do not come", async () => {
  const meeting = openRendezvous({ hostname, token, world: 3, timeoutMs: 3000 });
  const root = { hostname, port: meeting.port };
  const alone = assertRejects(
    () => joinWorld({ rank: 1, world: 3, root, hostname, token, timeoutMs: 2000 }),
    CommunicationError,
    "no table within 2000 ms",
  );
  await assertRejects(() => meeting.complete, CommunicationError, "Ranks 0, 2 of 3 did not come within 3000 ms");
  await alone;
  await meeting.close();
});

Deno.test("joinWorld() says where nobody listens", async () => {
  using listener = Deno.listen({ hostname, port: 0 });
  const { port } = listener.addr;
  listener.close();
  await assertRejects(
    () => joinWorld({ rank: 0, world: 1, root: { hostname, port }, hostname, token }),
    CommunicationError,
    `Cannot reach ${hostname}:${port}`,
  );
});

Deno.test("openRendezvous() says which port is taken", () => {
  using listener = Deno.listen({ hostname, port: 0 });
  const { port } = listener.addr;
  assertThrows(
    () => openRendezvous({ hostname, port, token, world: 1 }),
    CommunicationError,
    `Cannot listen on ${hostname}:${port}`,
  );
});

Deno.test("joinWorld() connects to the peers it is given, and to no others", async () => {
  const meeting = openRendezvous({ hostname, token, world: 3 }), root = { hostname, port: meeting.port };
  const transports = await Promise.all(
    [[1], [0, 2], [1]].map((peers, rank) => joinWorld({ rank, world: 3, root, hostname, token, peers })),
  );
  await meeting.close();
  await onAllRanks(transports, async (communicator, rank) => {
    if (rank < 2) await communicator.group("data", [0, 1]).barrier();
    if (rank !== 0) await communicator.group("pipeline", [1, 2]).barrier();
  });
});

async function encryptedPair(tokens = [token, token]): Promise<[FrameStream, FrameStream, Deno.TcpConn, Deno.TcpConn]> {
  const [a, b] = await sockets();
  const [atA, atB] = await Promise.all([
    encryptedFrames(a, { token: tokens[0]!, role: "server" }),
    encryptedFrames(b, { token: tokens[1]!, role: "client" }),
  ]);
  return [atA, atB, a, b];
}
const frame = { kind: "control", tag: noTag, bodyBytes: 3, messageBytes: 3 } as const;

Deno.test("encrypted frames do not show what is in them, and open at the other end", async () => {
  const [a, b] = await sockets(), seen: number[] = [];
  const spied = {
    read: (into: Uint8Array) => a.read(into),
    write: (bytes: Uint8Array) => {
      seen.push(...bytes);
      return a.write(bytes);
    },
    close: () => a.close(),
  };
  const [atA, atB] = await Promise.all([
    encryptedFrames(spied, { token, role: "server" }),
    encryptedFrames(b, { token, role: "client" }),
  ]);
  const body = new TextEncoder().encode("attack at dawn"), size = { bodyBytes: 14, messageBytes: 14 };
  await atA.write({ ...frame, ...size }, body);
  assertEquals(await atB.read(), { ...frame, ...size });
  const got = new Uint8Array(14);
  await atB.readBody(got);
  assertEquals(got, body);
  assert(!String.fromCharCode(...seen).includes("attack"));
  atA.close();
  atB.close();
});

Deno.test("encrypted frames do not open under another token, altered, or twice", async () => {
  const [otherA, otherB] = await encryptedPair([token, "guess"]);
  await otherA.write(frame, new Uint8Array(3));
  await assertRejects(() => otherB.read(), RangeError, "does not open");
  for (const stream of [otherA, otherB]) stream.close();

  for (const repeat of [false, true]) {
    const [a, b] = await sockets(), sent: Uint8Array[] = [];
    const recorder = {
      read: (into: Uint8Array) => a.read(into),
      write: (bytes: Uint8Array) => {
        sent.push(bytes.slice());
        return a.write(bytes);
      },
      close: () => a.close(),
    };
    const [atA, atB] = await Promise.all([
      encryptedFrames(recorder, { token, role: "server" }),
      encryptedFrames(b, { token, role: "client" }),
    ]);
    await atA.write(frame, new Uint8Array(3));
    await atB.read();
    const again = sent.at(-1)!;
    if (!repeat) again[10]! ^= 1;
    await a.write(again);
    await assertRejects(() => atB.read(), RangeError, "does not open");
    for (const stream of [atA, atB]) stream.close();
  }
});

Deno.test("tcpWorld() of one rank needs no peers", async () => {
  await onAllRanks(await tcpWorld(1), (communicator) => communicator.group("data", [0]).barrier());
});
