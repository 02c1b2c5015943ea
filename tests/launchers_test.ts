/** Real launchers, where the machine has them; skipped aloud elsewhere. */
import { assertEquals, assertStringIncludes } from "@std/assert";
import { fileURLToPath } from "node:url";
import { curve, freePort, inFolder, tinyRecord } from "./processes.ts";
import { skip } from "./skip.ts";
import { missing } from "./two_hosts.ts";
import { undisturbed } from "./undisturbed.ts";

const totalSteps = 12, token = "a token of this test";

const shell = (text: string) => new Deno.Command("sh", { args: ["-c", text], stderr: "null" }).outputSync();

const record = (folder: string) =>
  tinyRecord(folder, {
    data: { total_steps: totalSteps },
    ckpt: { checkpoint_every: 4 },
    runtime: { max_restarts: 20 },
  });

const train = (path: string, ...more: string[]) => ["train", "--config", path, "--backend", "cpu", "--json", ...more];

const mpi = "train under mpirun: a rank a process";
const noMpi = missing(["mpirun"]);
if (noMpi) skip(mpi, noMpi);
else {
  Deno.test(mpi, () =>
    inFolder(async (folder, processes) => {
      const path = record(folder), port = freePort();
      const launch =
        `exec mpirun --allow-run-as-root --oversubscribe -n 2 -x TROUPE_TOKEN -x TROUPE_WRITE -x INIT_CWD "$@"`;
      const { code, err } = await processes.startBy(launch, train(path, "--port", String(port)), {
        folder,
        env: { TROUPE_TOKEN: token },
      }).ended;
      assertEquals(code, 0, err);
      assertEquals(curve(folder), (await undisturbed(path, 2)).curve);
    }));
}

const slurm = "train under srun: two tasks on two nodes of a real Slurm";
const noSlurm = missing(["slurmctld", "slurmd", "srun", "sinfo", "munged"]);
if (noSlurm) skip(slurm, noSlurm);
else {
  Deno.test(slurm, () =>
    inFolder(async (folder, processes) => {
      const path = record(folder), state = `${folder}/slurm`;
      const script = fileURLToPath(new URL("./slurm_local.sh", import.meta.url));
      try {
        const up = shell(`sh '${script}' up '${state}' 2`);
        assertEquals(up.code, 0, "Slurm did not start");
        const port = freePort();
        const { code, err } = await processes.startBy(
          `exec srun -N2 -n2 "$@"`,
          // Its nodes have names that nothing resolves.
          train(path, "--host", "127.0.0.1", "--port", String(port)),
          { folder, env: { TROUPE_TOKEN: token, SLURM_CONF: `${state}/slurm.conf` } },
        ).ended;
        assertEquals(code, 0, err);
        assertStringIncludes(err, "planned on each of 2 ranks");
        assertEquals(curve(folder), (await undisturbed(path, 2)).curve);
      } finally {
        shell(`sh '${script}' down '${state}'`);
      }
    }));
}
