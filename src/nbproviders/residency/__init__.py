"""What is in memory, who leases it, and who leaves. Returns values; draws nothing; knows no provider."""
