import { assert, assertEquals, assertStringIncludes } from "@std/assert";
import type { AdapterReport } from "../backend/webgpu/doctor.ts";
import { programFile } from "./self.ts";
import { atLeast, doctor, examine, formatReport, neededDeno } from "./doctor.ts";

const none: AdapterReport = { found: false, provider: "deno", reason: "no adapter was found", advice: "install one" };

function adapter(software: boolean, features: string[]): AdapterReport {
  const rest = { provider: "deno", vendor: "1", architecture: "", subgroupSize: 0, limits: {} } as const;
  return { found: true, description: "Card", software, features, ...rest };
}

async function withFolder(run: (folder: string) => void | Promise<void>): Promise<void> {
  const folder = await Deno.makeTempDir({ prefix: "troupe doctor " });
  try {
    await run(folder);
  } finally {
    await Deno.remove(folder, { recursive: true });
  }
}

Deno.test("neededDeno is what the launcher fetches", () => {
  const launcher = Deno.readTextFileSync(programFile("troupe"));
  assertEquals(launcher.match(/^DENO_VERSION=(\S+)/m)?.[1], neededDeno);
});

Deno.test("atLeast() compares number by number", () => {
  for (const version of ["2.9.6", "2.9.10", "2.10.0", "3.0.0", "2.9.6-rc.1"]) {
    assert(atLeast(version, "2.9.6"), version);
  }
  for (const version of ["2.9.5", "2.8.99", "1.46.3", "nonsense"]) assert(!atLeast(version, "2.9.6"), version);
});

Deno.test("examine() says that training works without an adapter, on the CPU, and what to install", () =>
  withFolder((folder) => {
    const report = examine(none, folder);
    assertEquals([report.ok, report.backend, report.driver.api], [true, "cpu", undefined]);
    const text = formatReport(report).join("\n");
    for (const part of ["no adapter was found", "install one", "works here, on the CPU backend"]) {
      assertStringIncludes(text, part);
    }
  }));

Deno.test("examine() tells a GPU from software rendering", () =>
  withFolder((folder) => {
    const said = (report: AdapterReport) => formatReport(examine(report, folder)).join("\n");
    assert(!said(adapter(false, ["subgroups"])).includes("software"));
    assertStringIncludes(said(adapter(true, ["subgroups"])), "software rendering");
  }));

Deno.test({
  name: "examine() takes an adapter without subgroups for OpenGL, on Linux",
  ignore: Deno.build.os !== "linux",
  fn: () =>
    withFolder((folder) => {
      assertEquals(examine(adapter(false, ["subgroups"]), folder).driver.api, "Vulkan");
      const report = examine(adapter(false, []), folder);
      assertEquals(report.driver.api, "OpenGL");
      assertStringIncludes(formatReport(report).join("\n"), "mesa-vulkan-drivers");
    }),
});

Deno.test("examine() says how ranks get a GPU each, where there are several", () =>
  withFolder((folder) => {
    const said = (gpus: string[]) => formatReport(examine(adapter(false, ["subgroups"]), folder, gpus)).join("\n");
    assert(!said(["0000:00:06.0"]).includes("TROUPE_RANK_ENV"));
    const each = "TROUPE_RANK_ENV_0=DRI_PRIME=pci-0000_00_06_0 TROUPE_RANK_ENV_1=DRI_PRIME=pci-0000_00_07_0";
    assertStringIncludes(said(["0000:00:06.0", "0000:00:07.0"]), `-> export ${each}`);
  }));

Deno.test("examine() tries the folder that is there, and leaves nothing in it", () =>
  withFolder((folder) => {
    const report = examine(none, `${folder}/not/there/yet`);
    assertEquals(report.runFolder, { path: `${folder}/not/there/yet`, writable: true });
    assertEquals([...Deno.readDirSync(folder)], []);
  }));

Deno.test({
  name: "doctor() fails where runs cannot be written, and says what would allow it",
  permissions: { read: "inherit", env: "inherit", sys: "inherit", write: false },
  fn: async () => {
    const lines: string[] = [];
    assertEquals(await doctor({ print: (line) => lines.push(line), runDir: "/somewhere" }), 1);
    assertStringIncludes(lines.join("\n"), "TROUPE_WRITE=,/");
    assertStringIncludes(lines.at(-1)!, "does not work here yet");
  },
});

Deno.test("doctor() prints one line of JSON that holds the whole report", () =>
  withFolder(async (folder) => {
    const lines: string[] = [];
    const code = await doctor({ json: true, runDir: folder, print: (line) => lines.push(line) });
    const report = JSON.parse(lines[0]);
    assertEquals([lines.length, code, report.ok], [1, 0, true]);
    assertEquals(report.deno.version, Deno.version.deno);
    assertEquals(typeof report.system.memory.available, "number");
    assertEquals(report.backend, report.adapter.found ? "webgpu" : "cpu");
  }));
