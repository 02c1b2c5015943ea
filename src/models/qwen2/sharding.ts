/** Where each tensor lives, and nothing else. */
export { denseSharding as sharding } from "../dense.ts";
