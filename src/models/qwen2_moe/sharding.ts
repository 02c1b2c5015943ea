/** Where each tensor lives, and nothing else. */
export { moeSharding as sharding } from "../moe.ts";
