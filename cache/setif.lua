-- setif.lua stores a value in KEYS[1] if a value is there, or if none is. None is
-- there where Get finds none for the look of it: no key, an absence, a load lease,
-- an error marker, what a view of another kind or another program has written, or
-- a value for which its header no longer vouches. It returns 1 if it has stored
-- the value, else 0 and changes nothing.
--
-- KEYS[1] key
-- ARGV[1] value, as it shall be stored
-- ARGV[2] TTL of the value, ms
-- ARGV[3] 1: if a value is there; 0: if none is, and no tombstone
-- ARGV[4] 1: the view is plain; 0: values have a header; 2: they name generations, too
-- ARGV[5] the caller's Unix time, ms
-- ARGV[6] SHA-1 in hex of a value that is over by its generations, or ""
local function isValue(held)
  if not held then
    return false
  end
  local plain = ARGV[4] == "1"
  local mark, kind, flags, tags = string.byte(held, 1, 4)
  if mark ~= 0xC1 or kind == 0x10 then -- bare, or a frame
    return plain
  end
  if plain or kind ~= 0x11 or flags ~= 0 or ARGV[4] == "0" and tags ~= 0 then
    return false
  end
  if ARGV[6] ~= "" and redis.sha1hex(held) == ARGV[6] then
    return false
  end
  for i = 41, 48 do -- the generation; nil where it is cut off
    if ARGV[4] == "2" and string.byte(held, i) ~= string.byte(ARGV[1], i) or ARGV[4] == "0" and string.byte(held, i) ~= 0 then
      return false
    end
  end
  local soft = 0
  for i = 5, 12 do
    soft = soft * 256 + string.byte(held, i)
  end
  return soft == 0 or soft > tonumber(ARGV[5])
end

local held = redis.call("GET", KEYS[1])
if isValue(held) ~= (ARGV[3] == "1") or held == "\193\020" then
  return 0
end
redis.call("SET", KEYS[1], ARGV[1], "PX", ARGV[2])
return 1
