-- ack.lua ends tasks that are done: see ends.lua, which is put before it.
--
-- It returns for each stream how many of its entries were still pending, or an
-- error.
--
-- KEYS[1..4] T:s:r, T:s:0, T:s:1, T:s:2  KEYS[5] T:st
-- KEYS[6..] T:kz, T:u:<key>, T:k:<key>, T:kq:<key> of tasks that have such, T:rv
-- ARGV[1..] what ends reads
return ends(string.sub(KEYS[5], 1, -3), KEYS[5], 1, 1)
