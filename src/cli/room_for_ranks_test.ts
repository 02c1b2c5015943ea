import { assertStringIncludes, assertThrows } from "@std/assert";
import { ArgumentError } from "./parser.ts";
import { requireRoomForRanks } from "./room_for_ranks.ts";

Deno.test("requireRoomForRanks() refuses more processes than memory holds, and says how many could start", () => {
  requireRoomForRanks(20, 2 * 2 ** 30);
  requireRoomForRanks(1, 0); // one is what it is: the plan of its memory is judged elsewhere
  const { message } = assertThrows(() => requireRoomForRanks(1000, 2 * 2 ** 30), ArgumentError);
  assertStringIncludes(message, "1000 processes");
  assertStringIncludes(message, "20 could start");
});
