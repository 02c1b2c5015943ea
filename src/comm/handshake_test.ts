import { assertEquals, assertRejects } from "@std/assert";
import { acceptHandshake, HandshakeError, offerHandshake } from "./handshake.ts";

async function pair(): Promise<[Deno.TcpConn, Deno.TcpConn]> {
  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const [server, client] = await Promise.all([
    listener.accept(),
    Deno.connect({ hostname: "127.0.0.1", port: listener.addr.port }),
  ]);
  return [server, client];
}

Deno.test("handshake joins two ends that know one token, and leaves the connection open", async () => {
  const [server, client] = await pair();
  await Promise.all([acceptHandshake(server, { token: "secret" }), offerHandshake(client, { token: "secret" })]);
  await client.write(new Uint8Array([7]));
  const byte = new Uint8Array(1);
  assertEquals(await server.read(byte), 1);
  assertEquals(byte[0], 7);
  server.close();
  client.close();
});

Deno.test("acceptHandshake() refuses a wrong token and closes the connection", async () => {
  const [server, client] = await pair();
  const refused = assertRejects(
    () => acceptHandshake(server, { token: "secret" }),
    HandshakeError,
    "does not know the run's token",
  );
  await assertRejects(() => offerHandshake(client, { token: "guess" }), HandshakeError, "is the token the same?");
  await refused;
  await assertRejects(() => server.write(new Uint8Array(1)), Deno.errors.BadResource);
});

Deno.test("acceptHandshake() refuses a replayed answer", async () => {
  const [server, client] = await pair();
  const accepted = acceptHandshake(server, { token: "secret" });
  let sent = new Uint8Array();
  await offerHandshake({
    read: (into) => client.read(into),
    write: (bytes) => {
      sent = new Uint8Array([...sent, ...bytes]);
      return client.write(bytes);
    },
    close: () => client.close(),
  }, { token: "secret" });
  await accepted;
  server.close();
  client.close();

  const [again, replayer] = await pair();
  const refused = assertRejects(() => acceptHandshake(again, { token: "secret" }), HandshakeError);
  await replayer.write(sent);
  await refused;
  replayer.close();
});

Deno.test("acceptHandshake() gives up on a stranger that says nothing", async () => {
  const [server, client] = await pair();
  await assertRejects(
    () => acceptHandshake(server, { token: "secret", timeoutMs: 20 }),
    HandshakeError,
    "within 20 ms",
  );
  client.close();
});

Deno.test("acceptHandshake() reads no more of a stranger than a proof is long, however much it sends", async () => {
  let asked = 0, closed = false;
  const flood = {
    read: (into: Uint8Array) => {
      asked += into.length;
      return Promise.resolve(into.length);
    },
    write: (bytes: Uint8Array) => Promise.resolve(bytes.length),
    close: () => void (closed = true),
  };
  await assertRejects(
    () => acceptHandshake(flood, { token: "secret" }),
    HandshakeError,
    "does not know the run's token",
  );
  assertEquals([asked, closed], [64, true]);
});
