import { assertEquals, assertThrows } from "@std/assert";
import { ownVariables, rankEnvironment } from "./rank_process.ts";

Deno.test("ownVariables() reads what the ranks of one number are to find in their environment", () => {
  const env: Record<string, string> = {
    TROUPE_RANK_ENV_1: " A=1  DRI_PRIME=pci-0000_03_00_0 ",
    TROUPE_RANK_ENV_2: "A",
  };
  const read = (name: string) => env[name];
  assertEquals(ownVariables(0, read), {});
  assertEquals(ownVariables(1, read), { A: "1", DRI_PRIME: "pci-0000_03_00_0" });
  assertThrows(() => ownVariables(2, read), RangeError, 'TROUPE_RANK_ENV_2: "A" is not NAME=value');
});

Deno.test("rankEnvironment() has what other launchers set, and brackets an IPv6 address", () => {
  const { RANK, LOCAL_RANK, WORLD_SIZE, TROUPE_CONTROL } = rankEnvironment({
    rank: 5,
    attempt: 1,
    localRank: 1,
    world: 8,
    control: { hostname: "fe80::1", port: 7 },
    token: "secret",
    address: "fe80::2",
  });
  assertEquals([RANK, LOCAL_RANK, WORLD_SIZE, TROUPE_CONTROL], ["5", "1", "8", "[fe80::1]:7"]);
});
