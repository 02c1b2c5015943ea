import { assertEquals, assertThrows } from "@std/assert";
import { detectLaunch, firstHost } from "./launch.ts";
import { ArgumentError, getDefaultParser } from "./parser.ts";

const launch = (words: string[], env: Record<string, string> = {}) =>
  detectLaunch(getDefaultParser().parse(words), env);

const slurm = { SLURM_STEP_ID: "0", SLURM_PROCID: "2", SLURM_NTASKS: "4", SLURM_LOCALID: "1" };
const torch = { RANK: "0", WORLD_SIZE: "2", MASTER_ADDR: "10.0.0.1", MASTER_PORT: "29500", LOCAL_RANK: "0" };
const mpi = { OMPI_COMM_WORLD_RANK: "1", OMPI_COMM_WORLD_SIZE: "2", OMPI_COMM_WORLD_LOCAL_RANK: "1" };

Deno.test("detectLaunch() is alone without arguments or a launcher, also in a batch script of several tasks", () => {
  assertEquals(launch([]).role, "alone");
  assertEquals(launch([], { SLURM_PROCID: "0", SLURM_NTASKS: "4" }).role, "alone");
  assertEquals(launch([], { ...torch, WORLD_SIZE: "1" }).role, "alone");
  assertEquals(launch(["--nproc", "4"]).role, "alone");
});

Deno.test("detectLaunch() takes the root's place from the arguments", () => {
  assertEquals(launch(["--host", "a", "--port", "7", "--world_size", "8"]), {
    role: "root",
    host: "a",
    port: 7,
    world: 8,
  });
  assertEquals(launch(["--join", "--host", "a"]), { role: "member", host: "a", port: 8888 });
});

Deno.test("detectLaunch() reads the variables of Slurm, torchrun and Open MPI", () => {
  assertEquals(launch([], { ...slurm, SLURM_STEP_NODELIST: "gpu[3-4]" }), {
    role: "member",
    host: "gpu3",
    port: 8888,
    firstRank: 2,
    localRank: 1,
    launcher: "Slurm",
  });
  const root = launch(["--launcher", "torch"], torch);
  assertEquals([root.role, root.host, root.port, root.world, root.localRank], ["root", "10.0.0.1", 29500, 2, 0]);
  const member = launch([], { ...mpi, OMPI_COMM_WORLD_LOCAL_SIZE: "2" });
  assertEquals([member.role, member.host, member.firstRank], ["member", "127.0.0.1", 1]);
  assertEquals(launch(["--host", "10.9.9.9"], { ...slurm, SLURM_PROCID: "0" }).host, "10.9.9.9");
});

Deno.test("detectLaunch() says what is missing", () => {
  const fails = (words: string[], env: Record<string, string>, part: string) =>
    assertThrows(() => launch(words, env), ArgumentError, part);
  fails(["--join"], {}, "--host with the root's address");
  fails(["--host", "a"], {}, "--world_size N");
  fails(["--launcher", "torch"], { WORLD_SIZE: "2" }, "RANK is not set");
  fails(["--launcher", "slurm"], { SLURM_PROCID: "x" }, "SLURM_PROCID is x");
  fails([], { ...mpi, OMPI_COMM_WORLD_LOCAL_SIZE: "1" }, "MASTER_ADDR");
  fails(["--world_size", "4"], {}, "--nproc N");
  fails(["--host", "a", "--world_size", "0"], {}, "--world_size: 0 is not above 0");
  fails(["--rank", "4", "--world_size", "4", "--host", "a"], {}, "0 to 3");
});

Deno.test("firstHost() expands what Slurm writes", () => {
  assertEquals(["n1", "n1,n2", "n[1-3]", "n[007,9]", "a[1-2]-ib,b", ""].map(firstHost), [
    "n1",
    "n1",
    "n1",
    "n007",
    "a1-ib",
    undefined,
  ]);
});
