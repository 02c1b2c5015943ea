import { assertEquals, assertThrows } from "@std/assert";
import { move, routesOf } from "./exchange.ts";

/** Rows that each of three ranks' tokens have at each of six experts, two on a rank. */
const counts = [[2, 0, 1, 3, 0, 1], [0, 0, 4, 0, 1, 1], [1, 1, 0, 2, 2, 0]];
const ranks = [0, 1, 2];
const tableOf = (rank: number) => Uint32Array.from(counts.flatMap((count) => count.slice(2 * rank, 2 * rank + 2)));
const routes = (rank: number, direction: "to experts" | "from experts", room = 100) =>
  routesOf({ direction, room, columns: 1 }, [Uint32Array.from(counts[rank]), tableOf(rank)], { ranks, index: rank });
/** A byte a row: which rank's token it is, and how many before it of that rank went to experts before its own or to it. */
const rowsOf = (rank: number) => {
  const rows = counts[rank].reduce((sum, count) => sum + count, 0);
  return Uint8Array.from({ length: rows }, (_, row) => 16 * rank + row);
};

/** What each rank is sent, by who sends it. */
function deliver(going: readonly Uint8Array[], sent: readonly (readonly number[])[]): Uint8Array[] {
  return ranks.map((to) =>
    Uint8Array.from(ranks.flatMap((from) => {
      const first = sent[from].slice(0, to).reduce((sum, rows) => sum + rows, 0);
      return [...going[from].subarray(first, first + sent[from][to])];
    }))
  );
}

Deno.test("routesOf() groups rows by expert where they arrive, and brings each back to its place", () => {
  const there = ranks.map((rank) => routes(rank, "to experts")),
    back = ranks.map((rank) => routes(rank, "from experts"));
  const arrived = deliver(ranks.map(rowsOf), there.map(({ sent }) => sent));
  const lying = arrived.map((rows, rank) => {
    assertEquals(rows.length, there[rank].received.reduce((sum, count) => sum + count, 0));
    const grouped = new Uint8Array(rows.length);
    move(rows, grouped, there[rank].spread!, 1);
    return grouped;
  });
  // Expert 2 of rank 1: one row of rank 0 (its third), four of rank 1 (its first four), none of rank 2; then expert 3.
  assertEquals([...lying[1]], [2, 16, 17, 18, 19, 3, 4, 5, 34, 35]);

  const going = lying.map((rows, rank) => {
    const ordered = new Uint8Array(rows.length);
    move(rows, ordered, back[rank].gather!, 1);
    return ordered;
  });
  assertEquals(deliver(going, back.map(({ sent }) => sent)), ranks.map(rowsOf));
});

Deno.test("routesOf() stops where more rows come than there is room for, and says what would do", () => {
  routes(1, "to experts", 10);
  assertThrows(
    () => routes(1, "to experts", 9),
    RangeError,
    "10 rows come to the experts of rank 1 of the expert group, and there is room for 9; parallel.expert.load_bound 1.7",
  );
});
