-- A placeholder: this number is taken by the lists of single VMs.
SELECT 1;
