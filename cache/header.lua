-- header.lua is what the scripts know of what stands in a key (see entry.go). It
-- goes before those that need it.

local LEASE, VALUE, ABSENCE, TOMBSTONE, FAILURE = 0x13, 0x11, 0x12, 0x14, 0x15

-- kind is the second byte of what begins with C1, else nil.
local function kind(held)
  local mark, k = string.byte(held, 1, 2)
  if mark == 0xC1 then
    return k
  end
end

-- number is the one that the 8 bytes from i on stand for; nil if they are cut off.
-- It is exact for times in ms.
local function number(held, i)
  local n = 0
  for _, b in ipairs({string.byte(held, i, i + 7)}) do
    n = n * 256 + b
  end
  if #held >= i + 7 then
    return n
  end
end

-- bytes is the opposite of number.
local function bytes(n)
  local b = {}
  for i = 8, 1, -1 do
    b[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(b)
end

-- now is the server's Unix time in ms.
local function now()
  local t = redis.call("TIME")
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- owns says by what the caller may store in a key that begins with head (36 bytes
-- suffice): "lease" if it is the caller's lease, "refresh" if it is a value which
-- the caller refreshes, else nil.
local function owns(head, lease)
  if head == lease then
    return "lease"
  end
  if kind(head) == VALUE and string.sub(head, 21, 36) == string.sub(lease, 3) then
    return "refresh"
  end
end
