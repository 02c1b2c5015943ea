/** Real launchers, where the machine has them; skipped aloud elsewhere. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { curve, freePort, inFolder, type Processes, tinyRecord } from "./processes.ts";
import { skip } from "./skip.ts";
import { missing } from "./two_hosts.ts";

const totalSteps = 12, token = "a token of this test";

const shell = (text: string) => new Deno.Command("sh", { args: ["-c", text], stderr: "null" }).outputSync();

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
