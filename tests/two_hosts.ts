/**
 * Two hosts on this machine, and what joins them: network namespaces with a cable between them, where those can be made;
 * elsewhere one network, and a relay on the way of the member's connection to the root.
 */
import { freePort, type Processes, type Started, type StartOptions } from "./processes.ts";

const token = "a token of this test", loopback = "127.0.0.1";

const shell = (text: string) => new Deno.Command("sh", { args: ["-c", text], stderr: "null" }).outputSync();

/** Which of the programs are missing, or that this is not root, in words; nothing where all is there. */
export function missing(programs: readonly string[]): string | undefined {
  const absent = programs.filter((program) => !shell(`command -v ${program}`).success);
  if (absent.length > 0) return `${absent.join(", ")} not installed`;
  if (new TextDecoder().decode(shell("id -u").stdout).trim() !== "0") return "needs root";
}

/** Tests share this machine, and the process that runs them. */
const namespaceName = () => `troupe-${crypto.randomUUID().slice(0, 13)}`;

/** Why no network namespaces can be made here; nothing where they can. */
export function noNamespaces(): string | undefined {
  const name = namespaceName();
  return missing(["ip", "nsenter"]) ??
    (shell(`ip netns add ${name} && ip netns del ${name}`).success ? undefined : "no network namespaces can be made");
}

export interface TwoHosts extends AsyncDisposable {
  /** Starts the root's host. @param args of `train`, without a host */
  root(args: readonly string[], options: StartOptions): Started;
  /** Starts a member's host. */
  member(args: readonly string[], options: StartOptions): Started;
  /** From now on nothing gets through between them, and nobody is told. */
  cut(): void;
  mend(): void;
}

/**
 * @param processes starts what runs on the hosts
 * @param rate of the cable, as `tc` writes it ("10mbit"); as fast as can be where left out
 * @throws {Error} where namespaces cannot be made
 */
export function namespaces(processes: Processes, { rate }: { rate?: string } = {}): TwoHosts {
  const [a, b] = ["a", "b"].map((end) => `${namespaceName()}${end}`) as [string, string];
  const address = "10.79.77.1", place = ["--host", address, "--port", "8899"];
  const slow = rate === undefined
    ? ""
    : `ip netns exec ${a} tc qdisc add dev va root tbf rate ${rate} burst 64kb latency 200ms
       ip netns exec ${b} tc qdisc add dev vb root tbf rate ${rate} burst 64kb latency 200ms`;
  const remove = () => shell(`ip netns del ${a}; ip netns del ${b}`);
  const up = shell(
    `set -e; ip netns add ${a}; ip netns add ${b}; ip link add va netns ${a} type veth peer name vb netns ${b}
     ip -n ${a} addr add ${address}/24 dev va; ip -n ${b} addr add 10.79.77.2/24 dev vb
     for n in ${a} ${b}; do ip -n $n link set lo up; done
     ip -n ${a} link set va up; ip -n ${b} link set vb up
     ${slow}`,
  );
  if (!up.success) {
    remove();
    throw new Error("the network namespaces could not be set up");
  }
  const start = (where: string, args: readonly string[], options: StartOptions) =>
    processes.startBy(`exec nsenter --net=/run/netns/${where} "$@"`, [...args, ...place], {
      ...options,
      env: { TROUPE_TOKEN: token, TROUPE_NET: `,${address}`, ...options.env },
    });
  return {
    root: (args, options) => start(a, args, options),
    member: (args, options) => start(b, [...args, "--join"], options),
    cut: () => void shell(`ip -n ${a} link set va down`),
    mend: () => void shell(`ip -n ${a} link set va up`),
    [Symbol.asyncDispose]() {
      remove();
      return Promise.resolve();
    },
  };
}

/** Hosts that share this machine's network. Ranks reach each other at any time: what is cut is the member's connection. */
export function relayed(processes: Processes): TwoHosts {
  const port = freePort(), listener = Deno.listen({ hostname: loopback, port: 0 });
  const open = new Set<Deno.TcpConn>(), work = new Set<Promise<void>>();
  let whole = Promise.resolve(), mend = () => {};
  const close = (connection: Deno.TcpConn) => void (open.delete(connection) && connection.close());
  /** Bytes one way; they stand still while the link is cut. */
  const pass = async (from: Deno.TcpConn, to: Deno.TcpConn) => {
    const bytes = new Uint8Array(1 << 16);
    for (;;) {
      const count = await from.read(bytes);
      await whole;
      if (count === null) return;
      for (let done = 0; done < count;) done += await to.write(bytes.subarray(done, count));
    }
  };
  const relay = async (near: Deno.TcpConn) => {
    const ends = [near];
    open.add(near);
    try {
      await whole;
      const far = await Deno.connect({ hostname: loopback, port });
      ends.push(far);
      open.add(far);
      const ways = [pass(near, far), pass(far, near)].map((way) => way.catch(() => {}));
      await Promise.race(ways);
      ends.splice(0).forEach(close);
      await Promise.all(ways);
    } catch {
      ends.forEach(close); // nobody listens there: the member tries again
    }
  };
  const accepting = (async () => {
    for await (const near of listener) {
      const done = relay(near).finally(() => work.delete(done));
      work.add(done);
    }
  })();
  const start = (args: readonly string[], options: StartOptions) =>
    processes.start(args, { ...options, env: { TROUPE_TOKEN: token, ...options.env } });
  return {
    root: (args, options) => start([...args, "--host", loopback, "--port", String(port)], options),
    member: (args, options) =>
      start([...args, "--join", "--host", loopback, "--port", String(listener.addr.port)], options),
    cut() {
      const { promise, resolve } = Promise.withResolvers<void>();
      [whole, mend] = [promise, resolve];
    },
    mend: () => mend(),
    async [Symbol.asyncDispose]() {
      mend();
      listener.close();
      open.forEach(close);
      await Promise.all([accepting, ...work]);
    },
  };
}
