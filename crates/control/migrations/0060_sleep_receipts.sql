-- What data services held when a runtime fell asleep, and whether they held it when it woke.
ALTER TABLE commands ADD COLUMN receipt jsonb;
