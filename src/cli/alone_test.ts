import { assertThrows } from "@std/assert";
import { inScratch } from "./_testing.ts";
import { holdAlone } from "./alone.ts";

Deno.test("holdAlone() keeps a second run out of a folder, as long as the first one is there", () =>
  inScratch((folder) => {
    {
      using _first = holdAlone("ckpt.save_ckpt_folder", folder);
      assertThrows(() => holdAlone("ckpt.save_ckpt_folder", folder), Error, "another run saves there now");
    }
    using _next = holdAlone("ckpt.save_ckpt_folder", folder);
    return Promise.resolve();
  }));
