/** Real launchers, and hosts that are network namespaces, where the machine has them; skipped aloud elsewhere. */
import { assertEquals, assertMatch, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { curve, freePort, inFolder, type Processes, tinyRecord } from "./processes.ts";
import { skip } from "./skip.ts";

const totalSteps = 12, token = "a token of this test";

const shell = (text: string) => new Deno.Command("sh", { args: ["-c", text], stderr: "null" }).outputSync();

/** Which of the programs are missing, or that this is not root, in words; nothing where all is there. */
function missing(programs: readonly string[]): string | undefined {
  const absent = programs.filter((program) => !shell(`command -v ${program}`).success);
  if (absent.length > 0) return `${absent.join(", ")} not installed`;
  if (new TextDecoder().decode(shell("id -u").stdout).trim() !== "0") return "needs root";
}

const record = (folder: string, data: Record<string, unknown> = {}, runtime: Record<string, unknown> = {}) =>
  tinyRecord(folder, {
    data: { total_steps: totalSteps, ...data },
    ckpt: { checkpoint_every: 4 },
    runtime: { max_restarts: 20, ...runtime },
  });

const train = (path: string, ...more: string[]) => ["train", "--config", path, "--backend", "cpu", "--json", ...more];

async function calm(processes: Processes, parent: string, nproc: string, path = record(parent)) {
  const { code, err } = await processes.run(train(path, "--nproc", nproc), { folder: parent });
  assertEquals(code, 0, err);
  return curve(parent);
}

function folders(parent: string): [string, string] {
  return ["calm", "launched"].map((name) => {
    Deno.mkdirSync(`${parent}/${name}`);
    return `${parent}/${name}`;
  }) as [string, string];
}

const mpi = "train under mpirun: a rank a process";
const noMpi = missing(["mpirun"]);
if (noMpi) skip(mpi, noMpi);
else {
  Deno.test(mpi, () =>
    inFolder(async (parent, processes) => {
      const [quiet, folder] = folders(parent), expected = await calm(processes, quiet, "2");
      const port = freePort();
      const launch =
        `exec mpirun --allow-run-as-root --oversubscribe -n 2 -x TROUPE_TOKEN -x TROUPE_WRITE -x INIT_CWD "$@"`;
      const { code, err } = await processes.startBy(launch, train(record(folder), "--port", String(port)), {
        folder,
        env: { TROUPE_TOKEN: token },
      }).ended;
      assertEquals(code, 0, err);
      assertEquals(curve(folder), expected);
    }));
}

const slurm = "train under srun: two tasks on two nodes of a real Slurm";
const noSlurm = missing(["slurmctld", "slurmd", "srun", "sinfo", "munged"]);
if (noSlurm) skip(slurm, noSlurm);
else {
  Deno.test(slurm, () =>
    inFolder(async (parent, processes) => {
      const [quiet, folder] = folders(parent), state = `${parent}/slurm`, expected = await calm(processes, quiet, "2");
      const script = fileURLToPath(new URL("./slurm_local.sh", import.meta.url));
      try {
        const up = shell(`sh '${script}' up '${state}' 2`);
        assertEquals(up.code, 0, "Slurm did not start");
        const port = freePort();
        const { code, err } = await processes.startBy(
          `exec srun -N2 -n2 "$@"`,
          // Its nodes have names that nothing resolves.
          train(record(folder), "--host", "127.0.0.1", "--port", String(port)),
          { folder, env: { TROUPE_TOKEN: token, SLURM_CONF: `${state}/slurm.conf` } },
        ).ended;
        assertEquals(code, 0, err);
        assertStringIncludes(err, "planned on each of 2 ranks");
        assertEquals(curve(folder), expected);
      } finally {
        shell(`sh '${script}' down '${state}'`);
      }
    }));
}

const cut = "a host whose cable is pulled is missed within seconds, leaves by itself, and is replaced";
const netns = `troupe${Deno.pid}`,
  canNetns = () => {
    const made = shell(`ip netns add ${netns}a`).success;
    shell(`ip netns del ${netns}a`);
    return made ? undefined : "no network namespaces can be made";
  };
const noNetns = missing(["ip", "nsenter"]) ?? canNetns();
if (noNetns) skip(cut, noNetns);
else {
  Deno.test(cut, () =>
    inFolder(async (parent, processes) => {
      const [quiet, folder] = folders(parent), steps = { total_steps: 120 };
      const expected = await calm(processes, quiet, "2", record(quiet, steps));
      const [a, b] = [`${netns}a`, `${netns}b`], address = "10.79.77.1";
      const up = shell(
        `set -e; ip netns add ${a}; ip netns add ${b}; ip link add va netns ${a} type veth peer name vb netns ${b}
         ip -n ${a} addr add ${address}/24 dev va; ip -n ${b} addr add 10.79.77.2/24 dev vb
         for n in ${a} ${b}; do ip -n $n link set lo up; done
         ip -n ${a} link set va up; ip -n ${b} link set vb up`,
      );
      try {
        assertEquals(up.code, 0);
        const options = { folder, env: { TROUPE_TOKEN: token, TROUPE_NET: `,${address}` } };
        const path = record(folder, steps), place = ["--host", address, "--port", "8899"];
        const inside = (name: string, more: string[]) =>
          processes.startBy(`exec nsenter --net=/run/netns/${name} "$@"`, train(path, ...place, ...more), options);
        const root = inside(a, ["--world_size", "2"]), lost = inside(b, ["--join"]);
        const lines = () => root.out.text.split("\n").length - 1;
        await root.out.until(() => lines() >= 6, "some steps");
        shell(`ip -n ${a} link set va down`);
        const left = await lost.ended;
        assertEquals(left.code, 1, left.err);
        assertMatch(left.err, /The root at .* was not heard of for 6 s/);
        await root.err.until(
          (text) => text.split("Waiting for 1 of 2 ranks").length > 2,
          "the search for another host",
        );
        shell(`ip -n ${a} link set va up`);
        const replacement = inside(b, ["--join"]);
        const [ended, its] = await Promise.all([root.ended, replacement.ended]);
        assertEquals([ended.code, its.code], [0, 0], ended.err + its.err);
        assertMatch(ended.err, /ALERT Host .* was not heard of for 6 s/);
        assertEquals(curve(folder), expected);
      } finally {
        shell(`ip netns del ${a}; ip netns del ${b}`);
      }
    }));
}
